// Package conntrackcmd is the command line of conntrack(8) 1.4.7 over a
// conntrack.Table: its options, its messages and its output, byte for byte as
// far as they mean something here. Help text is the program's option summary.
package conntrackcmd

import (
	"fmt"
	"html"
	"strings"
	"time"

	"sluice/conntrack"
	"sluice/packet"
)

// Output forms, as -o names them.
type format uint

const (
	fmtExtended format = 1 << iota
	fmtXML
	fmtTimestamp
	fmtID
	fmtKTimestamp
	fmtLabels
	fmtUserspace
	fmtSave
)

var formats = []struct {
	name string
	bit  format
}{{"xml", fmtXML}, {"extended", fmtExtended}, {"timestamp", fmtTimestamp}, {"id", fmtID}, {"ktimestamp", fmtKTimestamp},
	{"labels", fmtLabels}, {"userspace", fmtUserspace}, {"save", fmtSave}}

var protoNames = map[uint8]string{
	packet.ProtoTCP: "tcp", packet.ProtoUDP: "udp", packet.ProtoUDPLite: "udplite", packet.ProtoICMP: "icmp",
	packet.ProtoICMPv6: "icmpv6", packet.ProtoSCTP: "sctp", packet.ProtoGRE: "gre", packet.ProtoDCCP: "dccp",
}

func protoName(p uint8) string {
	if n := protoNames[p]; n != "" {
		return n
	}
	return "unknown"
}

func familyName(f uint8) (string, int) {
	if f == packet.IPv6 {
		return "ipv6", 10
	}
	return "ipv4", 2
}

// what says which parts of a connection a message has: a listing all of them,
// an event what the kernel puts into one.
type what struct {
	typ    conntrack.EventType
	event  bool
	bits   conntrack.Events
	use    int
	now    time.Time
	labels *labelMap
}

func (w *what) counters(s *conntrack.Snapshot) bool {
	return s.Counted && (!w.event || w.typ == conntrack.EvDestroy)
}

func (w *what) state(s *conntrack.Snapshot) string {
	if w.event && w.typ == conntrack.EvUpdate && w.bits&conntrack.EventProtoInfo == 0 {
		return ""
	}
	return s.Name()
}

func (w *what) mark(s *conntrack.Snapshot) bool {
	return !w.event || s.Mark != 0 || w.typ != conntrack.EvDestroy && w.bits&conntrack.EventMark != 0
}

func (w *what) timeout(s *conntrack.Snapshot) bool {
	return !w.event || w.typ != conntrack.EvDestroy || s.Timeout != 0
}

func (w *what) helper(s *conntrack.Snapshot) bool {
	return s.Helper != "" && !(w.event && w.typ == conntrack.EvDestroy)
}

func (w *what) delta(s *conntrack.Snapshot) (int64, bool) {
	if !s.Stamped || w.event && w.typ != conntrack.EvDestroy {
		return 0, false
	}
	end := s.Stop
	if end == 0 {
		end = w.now.UnixNano()
	}
	return max(end-s.Start, 0) / int64(time.Second), true
}

// line prints a connection in the default or extended form.
func line(s *conntrack.Snapshot, f format, w *what) string {
	var b strings.Builder
	if f&fmtExtended != 0 {
		n, i := familyName(s.Orig.Family)
		fmt.Fprintf(&b, "%-8s %d ", n, i)
	}
	fmt.Fprintf(&b, "%-8s %d ", protoName(s.Orig.Proto), s.Orig.Proto)
	if w.timeout(s) {
		fmt.Fprintf(&b, "%d ", s.Timeout)
	}
	if n := w.state(s); n != "" {
		b.WriteString(n + " ")
	}
	tuple(&b, &s.Orig)
	if s.ZoneDir == conntrack.ZoneOrig {
		fmt.Fprintf(&b, "zone-orig=%d ", s.Zone)
	}
	counters(&b, s, w, 0)
	if s.Status&conntrack.SeenReply == 0 {
		b.WriteString("[UNREPLIED] ")
	}
	tuple(&b, &s.Reply)
	if s.ZoneDir == conntrack.ZoneReply {
		fmt.Fprintf(&b, "zone-reply=%d ", s.Zone)
	}
	counters(&b, s, w, 1)
	if s.Status&conntrack.Assured != 0 {
		b.WriteString("[ASSURED] ")
	}
	if w.mark(s) {
		fmt.Fprintf(&b, "mark=%d ", s.Mark)
	}
	if s.SecMark != 0 {
		fmt.Fprintf(&b, "secctx=%s ", packet.SecLabelText(s.SecMark))
	}
	if s.Zone != 0 && s.ZoneDir == conntrack.ZoneBoth {
		fmt.Fprintf(&b, "zone=%d ", s.Zone)
	}
	if d, ok := w.delta(s); ok {
		fmt.Fprintf(&b, "delta-time=%d ", d)
		if f&fmtKTimestamp != 0 {
			fmt.Fprintf(&b, "[start=%s] ", stamp(s.Start))
			if s.Stop != 0 {
				fmt.Fprintf(&b, "[stop=%s] ", stamp(s.Stop))
			}
		}
	}
	if w.helper(s) {
		b.WriteString("helper=" + s.Helper + " ")
	}
	if !w.event {
		fmt.Fprintf(&b, "use=%d ", w.use)
	}
	if f&fmtID != 0 {
		fmt.Fprintf(&b, "id=%d ", s.ID)
	}
	if f&fmtLabels != 0 && s.HasLabels {
		if l := w.labels.names(s.Labels); len(l) > 0 {
			b.WriteString("labels=" + strings.Join(l, ",") + " ")
		}
	}
	return strings.TrimSuffix(b.String(), " ")
}

func stamp(ns int64) string { return time.Unix(0, ns).Format("Mon Jan _2 15:04:05 2006") }

func tuple(b *strings.Builder, u *conntrack.Tuple) {
	fmt.Fprintf(b, "src=%s dst=%s ", u.SrcAddr(), u.DstAddr())
	tuplePorts(b, u)
}

func tuplePorts(b *strings.Builder, u *conntrack.Tuple) {
	switch u.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		fmt.Fprintf(b, "sport=%d dport=%d ", u.SrcPort, u.DstPort)
	case packet.ProtoGRE:
		fmt.Fprintf(b, "srckey=0x%x dstkey=0x%x ", u.SrcPort, u.DstPort)
	case packet.ProtoICMP, packet.ProtoICMPv6:
		fmt.Fprintf(b, "type=%d code=%d id=%d ", u.DstPort>>8, u.DstPort&0xff, u.SrcPort)
	}
}

func counters(b *strings.Builder, s *conntrack.Snapshot, w *what, d int) {
	if w.counters(s) {
		fmt.Fprintf(b, "packets=%d bytes=%d ", s.Packets[d], s.Bytes[d])
	}
}

func xmlPorts(b *strings.Builder, u *conntrack.Tuple) {
	switch u.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		fmt.Fprintf(b, "<sport>%d</sport><dport>%d</dport>", u.SrcPort, u.DstPort)
	case packet.ProtoGRE:
		fmt.Fprintf(b, "<srckey>0x%x</srckey><dstkey>0x%x</dstkey>", u.SrcPort, u.DstPort)
	}
}

var eventAttrs = [...]string{` type="new"`, ` type="update"`, ` type="destroy"`}

// xml prints a connection as one <flow> element.
func xml(s *conntrack.Snapshot, f format, w *what) string {
	var b strings.Builder
	b.WriteString("<flow")
	if w.event {
		b.WriteString(eventAttrs[w.typ])
	}
	b.WriteString(">")
	meta := func(name string, u *conntrack.Tuple, d int, zone bool) {
		n, i := familyName(u.Family)
		fmt.Fprintf(&b, `<meta direction="%s"><layer3 protonum="%d" protoname="%s"><src>%s</src><dst>%s</dst></layer3>`,
			name, i, n, u.SrcAddr(), u.DstAddr())
		fmt.Fprintf(&b, `<layer4 protonum="%d" protoname="%s">`, u.Proto, protoName(u.Proto))
		xmlPorts(&b, u)
		b.WriteString("</layer4>")
		if zone {
			fmt.Fprintf(&b, "<zone>%d</zone>", s.Zone)
		}
		if w.counters(s) {
			fmt.Fprintf(&b, "<counters><packets>%d</packets><bytes>%d</bytes></counters>", s.Packets[d], s.Bytes[d])
		}
		b.WriteString("</meta>")
	}
	meta("original", &s.Orig, 0, s.ZoneDir == conntrack.ZoneOrig)
	meta("reply", &s.Reply, 1, s.ZoneDir == conntrack.ZoneReply)
	b.WriteString(`<meta direction="independent">`)
	if n := w.state(s); n != "" {
		if s.Orig.Proto == packet.ProtoSCTP {
			n = conntrack.TCPState(s.SCTP).String() // the library looks the number up in TCP's names
		}
		b.WriteString("<state>" + n + "</state>")
	}
	if w.timeout(s) {
		fmt.Fprintf(&b, "<timeout>%d</timeout>", s.Timeout)
	}
	if w.mark(s) {
		fmt.Fprintf(&b, "<mark>%d</mark>", s.Mark)
	}
	if s.SecMark != 0 {
		fmt.Fprintf(&b, "<secctx>%s</secctx>", html.EscapeString(packet.SecLabelText(s.SecMark)))
	}
	if s.Zone != 0 && s.ZoneDir == conntrack.ZoneBoth {
		fmt.Fprintf(&b, "<zone>%d</zone>", s.Zone)
	}
	if !w.event {
		fmt.Fprintf(&b, "<use>%d</use>", w.use)
	}
	fmt.Fprintf(&b, "<id>%d</id>", s.ID)
	if s.Status&conntrack.Assured != 0 {
		b.WriteString("<assured/>")
	}
	if s.Status&conntrack.SeenReply == 0 {
		b.WriteString("<unreplied/>")
	}
	if d, ok := w.delta(s); ok {
		if f&fmtKTimestamp != 0 {
			fmt.Fprintf(&b, "<timestamp><start>%d</start>", s.Start)
			if s.Stop != 0 {
				fmt.Fprintf(&b, "<stop>%d</stop>", s.Stop)
			}
			b.WriteString("</timestamp>")
		}
		fmt.Fprintf(&b, "<deltatime>%d</deltatime>", d)
	}
	b.WriteString("</meta>")
	if w.helper(s) {
		b.WriteString("<helper>" + s.Helper + "</helper>")
	}
	if f&fmtLabels != 0 && s.HasLabels {
		if l := w.labels.names(s.Labels); len(l) > 0 {
			b.WriteString("<labels><label>" + strings.Join(l, "</label><label>") + "</label></labels>")
		}
	}
	if f&fmtTimestamp != 0 && w.event {
		t := w.now
		fmt.Fprintf(&b, "<when><hour>%d</hour><min>%02d</min><sec>%02d</sec><wday>%d</wday><day>%d</day><month>%d</month><year>%d</year></when>",
			t.Hour(), t.Minute(), t.Second(), int(t.Weekday())+1, t.Day(), int(t.Month()), t.Year())
	}
	b.WriteString("</flow>")
	return b.String()
}

var statusNames = []struct {
	name string
	bit  conntrack.Status
}{{"ASSURED", conntrack.Assured}, {"SEEN_REPLY", conntrack.SeenReply}, {"UNSET", 0}, {"FIXED_TIMEOUT", conntrack.FixedTimeout},
	{"EXPECTED", conntrack.Expected}, {"OFFLOAD", 1 << 14}}

// save prints a connection as a command line that makes it.
func save(s *conntrack.Snapshot, w *what) string {
	var b strings.Builder
	b.WriteString([...]string{"-A", "-U", "-D"}[w.typ])
	if w.timeout(s) {
		fmt.Fprintf(&b, " -t %d", s.Timeout)
	}
	var st []string
	for _, n := range []struct {
		name string
		bit  conntrack.Status
	}{{"SEEN_REPLY", conntrack.SeenReply}, {"ASSURED", conntrack.Assured}, {"EXPECTED", conntrack.Expected}, {"FIXED_TIMEOUT", conntrack.FixedTimeout}} {
		if s.Status&n.bit != 0 {
			st = append(st, n.name)
		}
	}
	if st == nil {
		st = []string{"UNSET"}
	}
	b.WriteString(" -u " + strings.Join(st, ","))
	if s.Zone != 0 {
		fmt.Fprintf(&b, " %s %d", [...]string{"-w", "--orig-zone", "--reply-zone"}[s.ZoneDir], s.Zone)
	}
	fmt.Fprintf(&b, " -s %s -d %s", s.Orig.SrcAddr(), s.Orig.DstAddr())
	if dnat(s) {
		fmt.Fprintf(&b, " -g %s", s.Reply.SrcAddr())
	} else {
		fmt.Fprintf(&b, " -r %s", s.Reply.SrcAddr())
	}
	if snat(s) {
		fmt.Fprintf(&b, " -n %s", s.Reply.DstAddr())
	} else {
		fmt.Fprintf(&b, " -q %s", s.Reply.DstAddr())
	}
	o, r := &s.Orig, &s.Reply
	switch n := protoNames[o.Proto]; n {
	case "":
		fmt.Fprintf(&b, " -p %d", o.Proto)
	case "dccp":
		b.WriteString(" -p dccp")
	case "gre":
		fmt.Fprintf(&b, " -p gre --srckey %d --dstkey %d --reply-key-src %d --reply-key-dst %d", o.SrcPort, o.DstPort, r.SrcPort, r.DstPort)
	case "icmp", "icmpv6":
		fmt.Fprintf(&b, " -p %s --%s-type %d --%s-code %d --%s-id %d", n, n, o.DstPort>>8, n, o.DstPort&0xff, n, o.SrcPort)
	default:
		fmt.Fprintf(&b, " -p %s --sport %d --dport %d --reply-port-src %d --reply-port-dst %d", n, o.SrcPort, o.DstPort, r.SrcPort, r.DstPort)
		if x := s.Name(); x != "" {
			b.WriteString(" --state " + x)
		}
		if n == "sctp" {
			fmt.Fprintf(&b, " --orig-vtag %d --reply-vtag %d", s.SCTPVTag[0], s.SCTPVTag[1])
		}
	}
	return b.String()
}

func snat(s *conntrack.Snapshot) bool {
	return s.Status&conntrack.SrcNAT != 0 && s.Reply.Dst != s.Orig.Src
}

func dnat(s *conntrack.Snapshot) bool {
	return s.Status&conntrack.DstNAT != 0 && s.Reply.Src != s.Orig.Dst
}

func spat(s *conntrack.Snapshot) bool {
	return s.Status&conntrack.SrcNAT != 0 && s.Reply.DstPort != s.Orig.SrcPort
}

func dpat(s *conntrack.Snapshot) bool {
	return s.Status&conntrack.DstNAT != 0 && s.Reply.SrcPort != s.Orig.DstPort
}

// expectLine prints an expectation.
func expectLine(t *conntrack.Table, x *conntrack.Expectation) string {
	var b strings.Builder
	fmt.Fprintf(&b, "%d proto=%d ", x.Timeout, x.Tuple.Proto)
	for _, p := range []struct {
		before string
		u      conntrack.Tuple
	}{{"", x.Tuple}, {"mask-", expectMask(x)}, {"master-", x.MasterOrig}} {
		fmt.Fprintf(&b, "%ssrc=%s %sdst=%s ", p.before, p.u.SrcAddr(), p.before, p.u.DstAddr())
		tuplePorts(&b, &p.u)
	}
	if x.Flags != 0 {
		var f []string
		for i, n := range []string{"PERMANENT", "INACTIVE"} {
			if x.Flags>>i&1 != 0 {
				f = append(f, n)
			}
		}
		b.WriteString(strings.Join(f, ",") + " ")
	}
	fmt.Fprintf(&b, "class=%d", x.Class)
	if h := t.HelperName(x); h != "" {
		b.WriteString(" helper=" + h)
	}
	return b.String()
}

func expectMask(x *conntrack.Expectation) conntrack.Tuple {
	return conntrack.Tuple{Src: x.Mask.Src, Dst: packet.FullMask(x.Tuple.Family), SrcPort: x.Mask.SrcPort, DstPort: 0xffff,
		Proto: x.Tuple.Proto, Family: x.Tuple.Family}
}

// expectXML prints an expectation as one <flow> element; typ is what it says of an event.
func expectXML(t *conntrack.Table, x *conntrack.Expectation, typ string) string {
	var b strings.Builder
	n, i := familyName(x.Tuple.Family)
	m, mask := &x.MasterOrig, expectMask(x)
	fmt.Fprintf(&b, `<flow%s><layer3 protonum="%d" protoname="%s">`, typ, i, n)
	for _, p := range []struct {
		name string
		u    *conntrack.Tuple
	}{{"expected", &x.Tuple}, {"mask", &mask}, {"master", m}} {
		fmt.Fprintf(&b, "<%s><src>%s</src><dst>%s</dst></%s>", p.name, p.u.SrcAddr(), p.u.DstAddr(), p.name)
	}
	fmt.Fprintf(&b, `</layer3><layer4 protonum="%d" protoname="%s">`, x.Tuple.Proto, protoName(x.Tuple.Proto))
	for _, p := range []struct {
		name string
		u    *conntrack.Tuple
	}{{"expected", &x.Tuple}, {"mask", &mask}, {"master", m}} {
		fmt.Fprintf(&b, "<%s>", p.name)
		xmlPorts(&b, p.u)
		fmt.Fprintf(&b, "</%s>", p.name)
	}
	b.WriteString("</layer4><meta>")
	if h := t.HelperName(x); h != "" {
		b.WriteString("<helper-name>" + h + "</helper-name>")
	}
	fmt.Fprintf(&b, "<timeout>%d</timeout><class>%d</class></meta></flow>", x.Timeout, x.Class)
	return b.String()
}

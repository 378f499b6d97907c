package router

import (
	"encoding/hex"
	"fmt"
	"hash/crc32"
	"strconv"
	"time"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/netstack"
	"sluice/packet"
	"sluice/packet/packettext"
	"sluice/tables"
)

// Trace is one packet's whole way through the router.
type Trace struct {
	Seq     uint64      `json:"seq"`             // counts the traces of one Watch or Sim
	Cause   string      `json:"cause,omitempty"` // of the router's own packets: "answer" to the packet traced before, or "socket"
	Family  uint8       `json:"family"`          // 4 or 6
	In      string      `json:"in,omitempty"`    // interface it came in by
	Packet  string      `json:"packet"`          // described as it came
	Len     int         `json:"length"`          // bytes, as it came
	Steps   []Step      `json:"steps"`
	Verdict string      `json:"verdict"`          // one of the Verdict… words
	Reason  string      `json:"reason,omitempty"` // of a drop
	Doc     string      `json:"reason_doc,omitempty"`
	Rule    *RuleRef    `json:"rule,omitempty"` // the rule or policy that dropped it, else the one of table filter that let it pass
	Out     []TraceSent `json:"out,omitempty"`
	Lost    int         `json:"steps_lost,omitempty"` // beyond MaxTraceSteps

	Frames []TraceFrame `json:"-"`    // of a Watch with Frames
	At     time.Time    `json:"time"` // of the batch it was in
	raw    []byte
	begun  uint64
}

// Verdicts of a Trace.
const (
	VerdictForwarded = "forwarded"
	VerdictDelivered = "delivered" // to the router's own sockets
	VerdictSent      = "sent"      // the router's own packet left
	VerdictDropped   = "dropped"
	VerdictHeld      = "held" // a fragment waits for the others, or a rule took the packet away
)

// TraceSent is a frame that left.
type TraceSent struct {
	Iface  string `json:"interface"`
	Packet string `json:"packet"`
	Len    int    `json:"length"`
	raw    []byte
}

// Bytes is the frame.
func (s *TraceSent) Bytes() []byte { return s.raw }

// TraceFrame is the packet at one point of its way.
type TraceFrame struct {
	Hook    string // or "in", "out"
	Iface   string // in and out, as far as they are known there
	After   bool   // as the hook left it
	Verdict string // of the hook, with After
	Rule    *RuleRef
	Reason  string
	Data    []byte
	Len     int
}

// RuleRef names a rule.
type RuleRef struct {
	Table string `json:"table"`
	Chain string `json:"chain"`
	Num   int    `json:"num"` // from 1; 0: the policy
	Text  string `json:"text"`
	File  string `json:"file,omitempty"`
	Line  int    `json:"line,omitempty"`
	rule  *tables.Rule
}

// Kinds of Step.
const (
	StepHook      = "hook"
	StepConntrack = "conntrack"
	StepTable     = "table"
	StepRule      = "rule"
	StepReturn    = "return"
	StepPolicy    = "policy"
	StepRoute     = "route"
	StepChange    = "change"
	StepNote      = "note"
	StepSend      = "send"
	StepDeliver   = "deliver"
	StepDrop      = "drop"
)

// MaxTraceSteps bounds a trace: what comes later is only counted.
const MaxTraceSteps = 100000

// Step is one thing that happened to a packet. Which fields are in use is its kind's affair.
type Step struct {
	Kind    string   `json:"kind"`
	Hook    string   `json:"hook,omitempty"`
	Table   string   `json:"table,omitempty"`
	Chain   string   `json:"chain,omitempty"`
	Depth   int      `json:"depth,omitempty"` // of jumps
	Rule    *RuleRef `json:"rule,omitempty"`
	Matched bool     `json:"matched,omitempty"`
	Result  string   `json:"result,omitempty"` // ACCEPT, DROP, a chain, a target …
	Field   string   `json:"field,omitempty"`  // of a change
	Before  string   `json:"before,omitempty"`
	After   string   `json:"after,omitempty"`
	Text    string   `json:"text,omitempty"`

	Conn  *TraceConn  `json:"connection,omitempty"`
	Route *TraceRoute `json:"route,omitempty"`
	// Log is the packet as the kernel's TRACE lines have it, of a matched rule,
	// a return or a policy, where it was asked for.
	Log string `json:"-"`
	// Bare: the rule is nothing but a verdict. Linux's TRACE lines call it by what
	// the end of its chain is called.
	Bare bool `json:"-"`
}

// TraceConn is what conntrack says of a packet.
type TraceConn struct {
	State    string `json:"state"` // as -m conntrack --ctstate
	New      bool   `json:"new,omitempty"`
	Original string `json:"original,omitempty"`
	Reply    string `json:"reply,omitempty"`
	TCP      string `json:"tcp,omitempty"` // the protocol's state
	Status   string `json:"status,omitempty"`
	Mark     uint32 `json:"mark,omitempty"`
	Zone     uint16 `json:"zone,omitempty"`
	Helper   string `json:"helper,omitempty"`
}

// TraceRoute is a routing decision.
type TraceRoute struct {
	Type    string `json:"type"` // unicast, local …
	Dev     string `json:"dev,omitempty"`
	Via     string `json:"via,omitempty"`
	Prefix  string `json:"prefix,omitempty"`
	Table   uint32 `json:"table,omitempty"`
	Rule    string `json:"rule,omitempty"` // the policy rule that decided
	MTU     uint32 `json:"mtu,omitempty"`
	Refused string `json:"refused,omitempty"` // why it was not used
}

// recorder writes down the way of the packet that a worker has in its hands. It
// is a tables.Tracer.
type recorder struct {
	w      *worker
	t      *Trace
	p      *packet.Packet
	was    state // as of the last step
	hook   hooks.Hook
	table  tables.TableID
	depth  int
	rule   int      // index of the step of the rule looked at last
	why    *RuleRef // the last rule or policy with a verdict
	filter *RuleRef // and of table filter
	log    bool
	frames int // bytes of each frame to keep; 0: none
	wants  []want
	names  *[2]tables.Chains
}

// state is what rules and the router change in a packet.
type state struct {
	src, dst                  [16]byte
	sport, dport              uint16
	ttl, tos                  uint8
	mark, secmark, prio, conn uint32
	length                    int
	icmpID                    uint16
	tcp                       [40]byte // TCP options
	tcpLen                    int
	payload                   uint32
	out                       *packet.Iface
	untracked                 bool
}

func (r *recorder) state(p *packet.Packet) (s state) {
	s.src, s.dst, s.sport, s.dport = p.Src(), p.Dst(), p.SrcPort(), p.DstPort()
	s.ttl, s.tos, s.mark, s.secmark, s.prio, s.length, s.out = p.TTL(), p.TOS(), p.Mark, p.SecMark, p.Priority, p.Len(), p.Out
	s.untracked = p.Is(packet.Untracked)
	if e := r.w.ct.Entry(p); e != nil {
		s.conn = e.Mark()
	}
	if !p.Is(packet.HasL4) || int(p.L4) > p.Len() {
		return s
	}
	t := p.Transport()
	if _, _, ok := p.ICMPType(); ok && len(t) >= 8 {
		s.icmpID = uint16(t[4])<<8 | uint16(t[5])
	}
	if p.Proto == packet.ProtoTCP && len(t) >= 20 {
		if n := int(t[12]>>4) * 4; n > 20 && n <= len(t) {
			s.tcpLen = copy(s.tcp[:], t[20:n])
		}
	}
	s.payload = crc32.ChecksumIEEE(p.Payload())
	return s
}

// newRecorder begins a trace of p, which is parsed if it can be.
func (w *worker) newRecorder(p *packet.Packet) *recorder {
	r := &recorder{w: w, names: &w.chainNames}
	r.begin(p)
	return r
}

func (r *recorder) begin(p *packet.Packet) {
	r.w.tracesBegun++
	r.t = &Trace{begun: r.w.tracesBegun, Family: p.Family, Len: p.Len(), raw: append([]byte(nil), p.Bytes()...)}
	if p.In != nil {
		r.t.In = p.In.Name
	}
	r.p, r.depth, r.rule, r.why, r.filter = p, 0, -1, nil, nil
	if p.Family != 0 && p.Len() >= 20 {
		r.was = r.state(p)
	}
}

func (r *recorder) add(s Step) {
	if len(r.t.Steps) >= MaxTraceSteps {
		r.t.Lost++
		return
	}
	s.Depth = r.depth
	r.t.Steps = append(r.t.Steps, s)
}

// diff notes what has changed since the last step.
func (r *recorder) diff(what string) {
	p := r.p
	now := r.state(p)
	was := r.was
	if now == was {
		return
	}
	r.was = now
	ch := func(field, before, after string) {
		r.add(Step{Kind: StepChange, Field: field, Before: before, After: after, Text: what})
	}
	num := func(field string, a, b uint64, base int) {
		if a != b {
			if base == 16 {
				ch(field, "0x"+strconv.FormatUint(a, 16), "0x"+strconv.FormatUint(b, 16))
			} else {
				ch(field, strconv.FormatUint(a, 10), strconv.FormatUint(b, 10))
			}
		}
	}
	end := func(a [16]byte, port uint16) string {
		s := netstack.Addr(p.Family, a)
		if p.Is(packet.HasPorts) {
			if p.Family == packet.IPv6 {
				return "[" + s.String() + "]:" + strconv.Itoa(int(port))
			}
			return s.String() + ":" + strconv.Itoa(int(port))
		}
		return s.String()
	}
	if was.src != now.src || was.sport != now.sport {
		ch("source", end(was.src, was.sport), end(now.src, now.sport))
	}
	if was.dst != now.dst || was.dport != now.dport {
		ch("destination", end(was.dst, was.dport), end(now.dst, now.dport))
	}
	num("icmp id", uint64(was.icmpID), uint64(now.icmpID), 10)
	if p.Family == packet.IPv4 {
		num("ttl", uint64(was.ttl), uint64(now.ttl), 10)
		num("tos", uint64(was.tos), uint64(now.tos), 16)
	} else {
		num("hop limit", uint64(was.ttl), uint64(now.ttl), 10)
		num("traffic class", uint64(was.tos), uint64(now.tos), 16)
	}
	num("mark", uint64(was.mark), uint64(now.mark), 16)
	num("connmark", uint64(was.conn), uint64(now.conn), 16)
	num("secmark", uint64(was.secmark), uint64(now.secmark), 10)
	num("priority", uint64(was.prio), uint64(now.prio), 16)
	if was.tcp != now.tcp || was.tcpLen != now.tcpLen {
		ch("tcp options", hex.EncodeToString(was.tcp[:was.tcpLen]), hex.EncodeToString(now.tcp[:now.tcpLen]))
	}
	if was.payload != now.payload && p.Is(packet.HasL4) {
		ch("payload", fmt.Sprintf("crc32 %08x", was.payload), fmt.Sprintf("crc32 %08x", now.payload))
	}
	num("length", uint64(was.length), uint64(now.length), 10)
	if was.untracked != now.untracked {
		ch("tracking", "on", "off")
	}
	if was.out != nil && now.out != nil && was.out != now.out {
		ch("out", was.out.Name, now.out.Name)
	}
}

// delivered: the router's own sockets have it.
func (r *recorder) delivered() {
	r.t.Verdict = VerdictDelivered
	r.add(Step{Kind: StepDeliver})
}

func (r *recorder) note(text string) { r.add(Step{Kind: StepNote, Text: text}) }

// enter begins a hook.
func (r *recorder) enter(h hooks.Hook) {
	switch h {
	case hooks.Forward:
		r.diff("forwarding")
	case hooks.Postrouting, hooks.Input:
		r.diff("routing")
	}
	r.hook, r.why = h, nil
	s := Step{Kind: StepHook, Hook: h.String()}
	in, out := "", ""
	if r.p.In != nil {
		in = r.p.In.Name
	}
	if r.p.Out != nil {
		out = r.p.Out.Name
	}
	s.Text = "IN=" + in + " OUT=" + out
	r.add(s)
	r.frame(h.String(), false, "", nil)
}

// leave ends a hook that said v.
func (r *recorder) leave(h hooks.Hook, v hooks.Verdict) {
	word := [...]string{"DROP", "ACCEPT", "STOLEN"}[min(int(v), 2)]
	r.frame(h.String(), true, word, r.why)
}

// stage notes what a stage that is no table did.
func (r *recorder) stage(name string, v hooks.Verdict, before packet.CtInfo, length int) {
	p := r.p
	switch name {
	case "defrag":
		if p.Is(packet.Reassembled) && p.Len() != length {
			r.note("the fragments are complete: from here on one packet of " + strconv.Itoa(p.Len()) + " bytes")
		} else if v == hooks.Stolen {
			r.note("a fragment: it waits for the others")
		}
		r.was = r.state(p)
	case "conntrack":
		if before != p.CtInfo || p.CtInfo != packet.CtNone {
			r.conntrack()
		}
	case "dnat", "snat":
		if v == hooks.Accept {
			r.diff("NAT")
		}
	case "helper":
		r.diff("helper")
	case "confirm":
		if e := r.w.ct.Entry(p); e != nil && v == hooks.Accept && p.CtInfo == packet.CtNew && before == packet.CtNew {
			r.add(Step{Kind: StepConntrack, Hook: r.hook.String(), Text: "confirmed", Conn: r.connection(e)})
		}
	default:
		r.diff(name)
	}
}

func (r *recorder) conntrack() {
	p := r.p
	e := r.w.ct.Entry(p)
	c := &TraceConn{State: stateName(p.CtInfo)}
	if e != nil {
		c = r.connection(e)
	}
	r.add(Step{Kind: StepConntrack, Hook: r.hook.String(), Conn: c})
}

func stateName(i packet.CtInfo) string {
	switch i {
	case packet.CtEstablished, packet.CtEstablishedReply:
		return "ESTABLISHED"
	case packet.CtRelated, packet.CtRelatedReply:
		return "RELATED"
	case packet.CtNew:
		return "NEW"
	case packet.CtUntracked:
		return "UNTRACKED"
	}
	return "INVALID"
}

func (r *recorder) connection(e *conntrack.Entry) *TraceConn {
	st := e.Status()
	c := &TraceConn{
		State: stateName(r.p.CtInfo), New: st&conntrack.Confirmed == 0, Mark: e.Mark(),
		Original: tupleText(e.Tuple(conntrack.Original)), Reply: tupleText(e.Tuple(conntrack.Reply)),
	}
	c.Zone, _ = e.Zone()
	if e.Tuple(conntrack.Original).Proto == packet.ProtoTCP {
		c.TCP = e.TCPState().String()
	}
	for _, b := range []struct {
		bit  conntrack.Status
		name string
	}{{conntrack.Assured, "ASSURED"}, {conntrack.SrcNAT, "SNAT"}, {conntrack.DstNAT, "DNAT"}} {
		if st&b.bit != 0 {
			if c.Status != "" {
				c.Status += ","
			}
			c.Status += b.name
		}
	}
	return c
}

func tupleText(u *conntrack.Tuple) string {
	end := func(a, port string) string {
		if u.Family == packet.IPv6 {
			return "[" + a + "]:" + port
		}
		return a + ":" + port
	}
	src, dst := u.SrcAddr().String(), u.DstAddr().String()
	name := tables.ProtocolName(u.Proto)
	if name == "" {
		name = strconv.Itoa(int(u.Proto))
	}
	switch u.Proto {
	case packet.ProtoTCP, packet.ProtoUDP, packet.ProtoUDPLite, packet.ProtoSCTP, packet.ProtoDCCP:
		return name + " " + end(src, strconv.Itoa(int(u.SrcPort))) + " > " + end(dst, strconv.Itoa(int(u.DstPort)))
	case packet.ProtoICMP, packet.ProtoICMPv6:
		return fmt.Sprintf("%s %s > %s type=%d/%d id=%d", name, src, dst, u.DstPort>>8, u.DstPort&0xff, u.SrcPort)
	}
	return name + " " + src + " > " + dst
}

// route notes a routing decision; refused is why its result was not used.
func (r *recorder) route(rt *netstack.Route, own bool, refused packet.Reason) {
	x := r.w.fib.ExplainPacket(r.p, own)
	t := &TraceRoute{Type: rt.Type.String(), MTU: rt.MTU, Table: rt.Table}
	if x.Prefix.IsValid() {
		t.Prefix = x.Prefix.String()
		if x.Prefix.Bits() == 0 {
			t.Prefix = "default"
		}
	}
	if x.Rule != (netstack.Rule{}) {
		t.Rule, t.Table = ruleText(&x.Rule), x.Rule.Table
	}
	if rt.Dev != nil {
		t.Dev = rt.Dev.Name
		if rt.Gateway {
			t.Via = netstack.Addr(r.p.Family, rt.NextHop).String()
		}
	}
	if refused != 0 {
		t.Refused = refused.String()
	}
	r.was.out = r.p.Out
	r.add(Step{Kind: StepRoute, Hook: r.hook.String(), Route: t})
}

// ruleText is a policy rule as `ip rule` lists it.
func ruleText(u *netstack.Rule) string {
	s := strconv.Itoa(int(u.Priority)) + ": from "
	if u.From.IsValid() {
		s += u.From.String()
	} else {
		s += "all"
	}
	if u.To.IsValid() {
		s += " to " + u.To.String()
	}
	if u.Mask != 0 {
		s += fmt.Sprintf(" fwmark %#x", u.Mark)
		if u.Mask != 0xffffffff {
			s += fmt.Sprintf("/%#x", u.Mask)
		}
	}
	if u.IIF != "" {
		s += " iif " + u.IIF
	}
	if u.OIF != "" {
		s += " oif " + u.OIF
	}
	if u.TOS != 0 {
		s += fmt.Sprintf(" tos %#x", u.TOS)
	}
	if u.Action > netstack.RouteUnicast {
		return s + " " + u.Action.String()
	}
	switch u.Table {
	case netstack.TableLocal:
		return s + " lookup local"
	case netstack.TableMain:
		return s + " lookup main"
	case netstack.TableDefault:
		return s + " lookup default"
	}
	return s + " lookup " + strconv.Itoa(int(u.Table))
}

// walk is a table's walk, traced.
func (r *recorder) walk(pr *tables.Program, c *tables.Context, t tables.TableID, p *packet.Packet) hooks.Verdict {
	r.table, r.rule = t, -1
	depth := r.depth
	r.add(Step{Kind: StepTable, Hook: c.Hook.String(), Table: t.String()})
	v := pr.Trace(c, t, p, &r.names[family(p)], r)
	r.depth = depth
	r.diff("")
	return v
}

// Looked is part of tables.Tracer.
func (r *recorder) Looked(ch *tables.Chain, n int, rule *tables.Rule, matched bool) {
	ref := &RuleRef{Table: r.table.String(), Chain: ch.Name, Num: n, rule: rule, File: rule.Source.File, Line: rule.Source.Line}
	s := Step{Kind: StepRule, Hook: r.hook.String(), Table: r.table.String(), Chain: ch.Name, Rule: ref, Matched: matched}
	if !matched {
		r.add(s)
		return
	}
	s.Result = rule.TargetName()
	if s.Log = r.logLine(); r.log {
		s.Bare = rule.Verdict != tables.VerdictNone && rule.Save() == " -j "+rule.Verdict.String()
	}
	if len(r.t.Steps) < MaxTraceSteps {
		r.rule = len(r.t.Steps)
	} else {
		r.rule = -1
	}
	r.add(s)
	switch {
	case rule.Jump != "" && !rule.Goto:
		r.depth++
	case rule.Verdict == tables.VerdictAccept, rule.Verdict == tables.VerdictDrop, rule.Target != nil:
		r.decided(ref)
	}
}

func (r *recorder) decided(x *RuleRef) {
	r.why = x
	if r.table == tables.Filter {
		r.filter = x
	}
}

// Ran is part of tables.Tracer.
func (r *recorder) Ran(res tables.Result) {
	if r.rule >= 0 {
		s := &r.t.Steps[r.rule]
		word := [...]string{"", "ACCEPT", "DROP", "RETURN", "STOLEN"}[min(int(res), 4)]
		if word != "" && word != s.Result {
			s.Result += ": " + word
		}
	}
	r.diff("")
}

// Returned is part of tables.Tracer.
func (r *recorder) Returned(ch *tables.Chain, n int) {
	r.depth = max(r.depth-1, 0)
	if ch == nil {
		return
	}
	s := Step{Kind: StepReturn, Hook: r.hook.String(), Table: r.table.String(), Chain: ch.Name}
	if n > len(ch.Rules()) {
		s.Log = r.logLine()
		s.Text = "end of the chain"
	}
	s.Rule = &RuleRef{Table: r.table.String(), Chain: ch.Name, Num: n}
	r.add(s)
}

// Policy is part of tables.Tracer.
func (r *recorder) Policy(ch *tables.Chain, v tables.Verdict) {
	name := r.hook.String()
	n := 1
	if ch != nil {
		name, n = ch.Name, len(ch.Rules())+1
	}
	if r.why == nil || n > 1 || v != tables.VerdictAccept { // an empty table decides nothing
		r.decided(&RuleRef{Table: r.table.String(), Chain: name})
	}
	r.add(Step{Kind: StepPolicy, Hook: r.hook.String(), Table: r.table.String(), Chain: name, Result: v.String(), Log: r.logLine(),
		Rule: &RuleRef{Table: r.table.String(), Chain: name, Num: n}})
}

func (r *recorder) logLine() string {
	if !r.log {
		return ""
	}
	return string(tables.AppendLog(nil, "", tables.LogTCPSeq|tables.LogTCPOptions|tables.LogIPOptions|tables.LogUID, r.p))
}

// sent notes a frame that leaves.
func (r *recorder) sent(d *packet.Iface, p *packet.Packet) {
	if p == r.p {
		r.diff("")
	}
	raw := append([]byte(nil), p.Bytes()...)
	if p.GSO.NeedsCsum { // as a device without offload would send it
		q := packet.New()
		q.Copy(p)
		q.CompleteChecksum()
		raw = append(raw[:0], q.Bytes()...)
	}
	r.t.Out = append(r.t.Out, TraceSent{Iface: d.Name, raw: raw, Len: len(raw)})
	r.add(Step{Kind: StepSend, Result: d.Name})
	r.frame("out", true, "sent", r.why)
}

func (r *recorder) frame(at string, after bool, verdict string, why *RuleRef) {
	if r.frames == 0 {
		return
	}
	b := r.p.Bytes()
	f := TraceFrame{Hook: at, After: after, Verdict: verdict, Rule: why, Len: len(b), Data: append([]byte(nil), b[:min(len(b), r.frames)]...)}
	if r.p.Reason != 0 {
		f.Reason = r.p.Reason.String()
	}
	if at == "out" || at == "POSTROUTING" || at == "OUTPUT" || r.p.In == nil {
		if r.p.Out != nil {
			f.Iface = r.p.Out.Name
		}
	} else {
		f.Iface = r.p.In.Name
	}
	r.t.Frames = append(r.t.Frames, f)
}

// finish ends the trace of a packet that went its way; ok is what its last function said.
func (r *recorder) finish(ok bool) *Trace {
	t, p := r.t, r.p
	t.At = r.w.r.wall(r.w.now)
	switch {
	case !ok:
		t.Verdict, t.Reason, t.Doc = VerdictDropped, p.Reason.String(), p.Reason.Doc()
		r.depth = 0
		r.add(Step{Kind: StepDrop, Result: t.Reason, Text: t.Doc})
		if r.why != nil && isRuleReason(p.Reason) {
			t.Rule = r.why
		}
	case t.Verdict != "":
	case len(t.Out) > 0 && t.Cause != "":
		t.Verdict = VerdictSent
	case len(t.Out) > 0:
		t.Verdict = VerdictForwarded
	default:
		t.Verdict = VerdictHeld
	}
	if ok {
		t.Rule = r.filter
	}
	return t
}

func isRuleReason(x packet.Reason) bool { return tables.DropOfRules(x) }

// Text fills in what is told in words; a trace's reader calls it once, so that
// the worker need not.
func (t *Trace) text() {
	t.Packet = packettext.Describe(t.raw)
	for i := range t.Out {
		t.Out[i].Packet = packettext.Describe(t.Out[i].raw)
	}
	ref := func(x *RuleRef) {
		if x != nil && x.rule != nil && x.Text == "" {
			x.Text = "-A " + x.Chain + x.rule.Save()
		}
	}
	for i := range t.Steps {
		ref(t.Steps[i].Rule)
	}
	ref(t.Rule)
	for i := range t.Frames {
		ref(t.Frames[i].Rule)
	}
}

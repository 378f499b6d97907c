package conntrackcmd

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"time"

	"sluice/conntrack"
	"sluice/packet"
)

// match says whether a connection is one of those that the options describe.
func (c *cmdline) match(s *conntrack.Snapshot) bool {
	o, r := &s.Orig, &s.Reply
	mask := func(p *prefixArg, m *[16]byte, given bool) *prefixArg {
		if given {
			return &prefixArg{p.addr, *m}
		}
		return p
	}
	switch {
	case c.family != 0 && c.family != o.Family,
		c.has(optSrc) && !mask(&c.src, &c.maskSrc, c.has(optMaskSrc)).covers(&o.Src),
		c.has(optDst) && !mask(&c.dst, &c.maskDst, c.has(optMaskDst)).covers(&o.Dst),
		c.has(optReplySrc) && !c.replySrc.covers(&r.Src),
		c.has(optReplyDst) && !c.replyDst.covers(&r.Dst),
		c.has(optProto) && c.proto != o.Proto,
		c.has(optStatus) && c.cmd != cmdUpdate && s.Status&c.statusMask != c.status,
		c.has(optMark) && c.cmd != cmdUpdate && s.Mark&c.markMask != c.mark,
		c.has(optID) && c.id != s.ID,
		c.has(optZone) && c.zone != zoneOf(s, conntrack.ZoneBoth),
		c.has(optOrigZone) && c.origZone != zoneOf(s, conntrack.ZoneOrig),
		c.has(optReplyZone) && c.replyZone != zoneOf(s, conntrack.ZoneReply),
		!c.matchNAT(s), !c.matchProto(s):
		return false
	}
	for i := range c.labels {
		if s.Labels[i]&c.labels[i] != c.labels[i] {
			return false
		}
	}
	return true
}

// zoneOf is the zone if it holds for just that direction, or both; else 0.
func zoneOf(s *conntrack.Snapshot, dir conntrack.ZoneDir) uint16 {
	if s.ZoneDir == dir {
		return s.Zone
	}
	return 0
}

func (p *prefixArg) covers(a *[16]byte) bool {
	for i := range a {
		if (a[i]^p.addr[i])&p.mask[i] != 0 {
			return false
		}
	}
	return true
}

func (c *cmdline) matchNAT(s *conntrack.Snapshot) bool {
	is := func(n *natArg, changed bool, addr *[16]byte, port uint16) bool {
		return changed && (!n.given || n.addr == *addr && (!n.hasPort || n.port == port))
	}
	src := func(n *natArg) bool { return is(n, snat(s) || spat(s), &s.Reply.Dst, s.Reply.DstPort) }
	dst := func(n *natArg) bool { return is(n, dnat(s) || dpat(s), &s.Reply.Src, s.Reply.SrcPort) }
	if c.has(optAnyNAT) {
		return src(&c.nat[2]) || dst(&c.nat[2])
	}
	return (!c.has(optSrcNAT) || src(&c.nat[0])) && (!c.has(optDstNAT) || dst(&c.nat[1]))
}

func (c *cmdline) matchProto(s *conntrack.Snapshot) bool {
	if c.protoGiven == 0 {
		return true
	}
	o, r := &s.Orig, &s.Reply
	for po, v := range map[int]uint32{
		poSport: uint32(o.SrcPort), poDport: uint32(o.DstPort), poReplySport: uint32(r.SrcPort), poReplyDport: uint32(r.DstPort),
		poType: uint32(o.DstPort >> 8), poCode: uint32(o.DstPort & 0xff), poID: uint32(o.SrcPort),
		poOrigTag: s.SCTPVTag[0], poReplyTag: s.SCTPVTag[1],
	} {
		if c.hasP(po) && c.protoVals[po] != v {
			return false
		}
	}
	if c.hasP(poState) && c.cmd != cmdUpdate {
		switch o.Proto {
		case packet.ProtoTCP:
			return s.TCP.State == conntrack.TCPState(c.state)
		case packet.ProtoSCTP:
			return s.SCTP == conntrack.SCTPState(c.state)
		}
		return false
	}
	return true
}

// do carries out a command on the connections.
func (r *runner) do(c *cmdline) error {
	t := r.t
	w := what{use: 1}
	show := func(s *conntrack.Snapshot) { r.element(c, "conntrack", r.text(c, s, &w)) }
	switch c.cmd {
	case cmdVersion:
		fmt.Fprintln(r.out, banner)
	case cmdHelp:
		io.WriteString(r.out, helpText)
		if c.has(optProto) {
			io.WriteString(r.out, protoHelp(c.proto))
		}
	case cmdList:
		each := t.Each
		if c.has(optZero) {
			each = t.EachZero
		}
		if c.table == tableConntrack { // what is unconfirmed belongs to its packet; what is dying is gone
			each(func(s *conntrack.Snapshot) bool {
				if c.match(s) {
					show(s)
				}
				return true
			})
		}
		r.closeXML("conntrack")
		r.summary("flow entries have been shown.")
	case cmdGet:
		if c.has(optReplySrc) || c.has(optReplyDst) { // the question would have an original direction without addresses
			return kernelError(conntrack.ErrInvalid)
		}
		key := c.tuples().Orig
		s, _, ok := t.Get(&key)
		if !ok {
			return errors.New("such conntrack doesn't exist")
		}
		if !c.match(&s) { // asked by its reply, or with other options than it has
			return r.counted(c, "flow entries have been shown.")
		}
		w.use = 2
		show(&s)
		r.summary("flow entries have been shown.")
	case cmdDelete:
		r.opened = true // a deletion's XML has no frame
		w.typ = conntrack.EvDestroy
		t.Delete(func(s *conntrack.Snapshot) bool {
			if !c.match(s) {
				return false
			}
			show(s)
			return true
		})
		return r.counted(c, "flow entries have been deleted.")
	case cmdUpdate:
		w.use = 2
		r.opened = true
		t.Update(func(s *conntrack.Snapshot) bool { return c.match(s) && c.changes(s) }, c.change, show)
		return r.counted(c, "flow entries have been updated.")
	case cmdCreate, cmdAdd:
		s, err := c.newEntry()
		if err == nil {
			err = t.Create(&s)
		}
		switch {
		case err == nil:
			r.shown++
		case c.cmd == cmdAdd && errors.Is(err, conntrack.ErrExists):
		case errors.Is(err, conntrack.ErrExists):
			return errors.New("Such conntrack exists, try -U to update")
		default:
			return kernelError(err)
		}
		r.summary("flow entries have been " + map[command]string{cmdCreate: "created.", cmdAdd: "added."}[c.cmd])
	case cmdFlush:
		if c.family == 0 {
			t.Flush()
		} else {
			t.Delete(func(s *conntrack.Snapshot) bool { return s.Orig.Family == c.family })
		}
		if !r.quiet {
			fmt.Fprintln(r.err, banner+": connection tracking table has been emptied.")
		}
	case cmdCount:
		fmt.Fprintln(r.out, t.Count())
	case cmdStats:
		for i, s := range t.Stats() {
			fmt.Fprintf(r.out, "cpu=%-4d\tfound=%d invalid=%d insert=%d insert_failed=%d drop=%d early_drop=%d error=%d search_restart=%d clash_resolve=%d chaintoolong=%d \n",
				i, s.Found, s.Invalid, s.Insert, s.InsertFailed, s.Drop, s.EarlyDrop, s.Error, s.SearchRestart, s.ClashResolve, s.ChainTooLong)
		}
	case cmdEvent:
		r.events(c)
	}
	return nil
}

// newEntry is what -I and -A are to make, held against what the kernel refuses.
func (c *cmdline) newEntry() (conntrack.Snapshot, error) {
	s := c.tuples()
	zones := 0
	for _, o := range []int{optZone, optOrigZone, optReplyZone} {
		if c.has(o) {
			zones++
		}
	}
	_, known := s.Orig.Invert()
	switch {
	case s.Orig.Proto != s.Reply.Proto, zones > 1, !known,
		s.Orig.Proto == packet.ProtoICMP && s.Orig.Family == packet.IPv6,
		s.Orig.Proto == packet.ProtoICMPv6 && s.Orig.Family == packet.IPv4:
		return s, conntrack.ErrInvalid
	case s.Status&conntrack.Expected != 0:
		return s, errBusy
	}
	return s, nil
}

var (
	errBusy          = errors.New("Device or resource busy")
	errNoExpectation = errors.New("No such file or directory")
)

// kernelError gives the words conntrack has for what the table refused.
func kernelError(err error) error {
	if errors.Is(err, conntrack.ErrInvalid) {
		return errors.New("invalid parameters")
	}
	return err
}

// counted ends a command for which finding nothing is a failure.
func (r *runner) counted(c *cmdline, what string) error {
	n := r.shown
	r.summary(what)
	if n == 0 {
		return exitStatus(1)
	}
	return nil
}

// tuples builds the connection that the options describe. Where only one
// direction has addresses, the other is its inverse, whatever ports it was given;
// where both have, nothing is filled in.
func (c *cmdline) tuples() (s conntrack.Snapshot) {
	o, p := &s.Orig, &s.Reply
	v := &c.protoVals
	o.Family, p.Family = c.family, c.family
	o.Src, o.Dst, p.Src, p.Dst = c.src.addr, c.dst.addr, c.replySrc.addr, c.replyDst.addr
	o.Proto = c.proto
	o.SrcPort, o.DstPort = uint16(v[poSport]), uint16(v[poDport])
	if c.proto == packet.ProtoICMP || c.proto == packet.ProtoICMPv6 {
		o.SrcPort, o.DstPort = uint16(v[poID]), uint16(v[poType])<<8|uint16(v[poCode])&0xff
	}
	if c.hasP(poReplySport) || c.hasP(poReplyDport) { // only these give the reply a protocol
		p.Proto = c.proto
	}
	p.SrcPort, p.DstPort = uint16(v[poReplySport]), uint16(v[poReplyDport])
	orig, reply := c.has(optSrc) || c.has(optDst), c.has(optReplySrc) || c.has(optReplyDst)
	switch {
	case !reply:
		*p, _ = o.Invert()
	case !orig:
		*o, _ = p.Invert()
	}
	if n := &c.nat[0]; n.given {
		p.Dst = n.addr
		if n.port != 0 {
			p.DstPort = n.port
		}
		s.Status |= conntrack.SrcNAT | conntrack.NATDoneMask
	}
	if n := &c.nat[1]; n.given {
		p.Src = n.addr
		if n.port != 0 {
			p.SrcPort = n.port
		}
		s.Status |= conntrack.DstNAT | conntrack.NATDoneMask
	}
	o.Zone, p.Zone = c.zone, c.zone
	if c.has(optOrigZone) {
		o.Zone = c.origZone
	}
	if c.has(optReplyZone) {
		p.Zone = c.replyZone
	}
	s.Status |= c.status
	s.Timeout = c.timeout
	s.Mark = c.mark
	s.TCP.State, s.SCTP = conntrack.TCPState(c.state), conntrack.SCTPState(c.state)
	s.SCTPVTag = [2]uint32{v[poOrigTag], v[poReplyTag]}
	s.Labels = c.labelAdd
	s.HasLabels = c.has(optLabelAdd)
	return s
}

// change is what -U does to one connection.
func (c *cmdline) change(s *conntrack.Snapshot) (ch conntrack.Change) {
	if c.has(optMark) {
		ch.SetMark, ch.Mark = true, c.mark
		if c.markMask != ^uint32(0) {
			ch.Mark = s.Mark&^c.markMask ^ c.mark
		}
	}
	ch.SetTime, ch.Timeout = c.has(optTimeout), c.timeout
	ch.SetStatus = c.status
	ch.SetState, ch.State = c.hasP(poState), conntrack.TCPState(c.state)
	if c.has(optLabelAdd) || c.has(optLabelDel) {
		ch.SetLabels = true
		for i := range ch.Labels {
			ch.LabelMask[i] = c.labelAdd[i] | c.labelDel[i]
			if c.delAll {
				ch.LabelMask[i] = 0xff
			}
			ch.Labels[i] = c.labelAdd[i]
		}
	}
	return ch
}

// changes says whether -U would leave the connection as it is not.
func (c *cmdline) changes(s *conntrack.Snapshot) bool {
	ch := c.change(s)
	labels := s.Labels
	for i := range labels {
		labels[i] = labels[i]&^ch.LabelMask[i] | ch.Labels[i]
	}
	return ch.SetMark && ch.Mark != s.Mark || ch.SetTime && ch.Timeout != s.Timeout || ch.SetStatus&^s.Status != 0 ||
		ch.SetState && ch.State != s.TCP.State || ch.SetLabels && labels != s.Labels
}

// events prints what happens until the caller has enough.
func (r *runner) events(c *cmdline) {
	sub := r.t.Subscribe()
	defer sub.Close()
	r.out.Flush()
	lost := uint64(0)
	for {
		var ev conntrack.Event
		for sub.Next(&ev) {
			r.event(c, &ev)
		}
		r.out.Flush()
		if n := sub.Lost.Load(); n != lost {
			lost = n
			fmt.Fprint(r.err, "WARNING: We have hit ENOBUFS! We are losing events.\nThis message means that the current netlink socket buffer size is too small.\nPlease, check --buffer-size in conntrack(8) manpage.\n")
		}
		select {
		case <-sub.C():
			continue
		case <-r.stop:
		}
		break
	}
	for ev := (conntrack.Event{}); sub.Next(&ev); {
		r.event(c, &ev)
	}
	if c.table == tableExpect {
		r.closeXML("expect")
		r.summary("expectation events have been shown.")
		return
	}
	r.closeXML("conntrack")
	r.summary("flow events have been shown.")
}

var eventWords = [...]string{"    [NEW] ", " [UPDATE] ", "[DESTROY] "}

func (r *runner) event(c *cmdline, ev *conntrack.Event) {
	if (ev.Expect != nil) != (c.table == tableExpect) || c.has(optEventMask) && !c.events[ev.Type] {
		return
	}
	now := time.Now()
	var head string
	if c.format&fmtTimestamp != 0 && c.format&fmtXML == 0 {
		head = fmt.Sprintf("[%-8d.%-6d]\t", now.Unix(), now.Nanosecond()/1000)
	}
	if ev.Expect != nil {
		if c.format&fmtXML != 0 {
			r.element(c, "expect", expectXML(r.t, ev.Expect, eventAttrs[ev.Type]))
		} else {
			r.element(c, "expect", head+eventWords[ev.Type]+expectLine(r.t, ev.Expect))
		}
		return
	}
	if !c.match(&ev.Snapshot) {
		return
	}
	w := what{typ: ev.Type, event: true, bits: ev.Bits, now: now}
	s := r.text(c, &ev.Snapshot, &w)
	if c.format&(fmtXML|fmtSave) == 0 {
		s = eventWords[ev.Type] + s
	}
	s = head + s
	if ev.User {
		s += fmt.Sprintf(" [USERSPACE] portid=%d", os.Getpid())
	}
	r.element(c, "conntrack", s)
}

// doExpect carries out a command on the expectations.
func (r *runner) doExpect(c *cmdline) error {
	t := r.t
	show := func(x *conntrack.Expectation) {
		if c.format&fmtXML != 0 {
			r.element(c, "expect", expectXML(t, x, ""))
			return
		}
		head := ""
		if c.format&fmtTimestamp != 0 {
			now := time.Now()
			head = fmt.Sprintf("[%-8d.%-6d]\t", now.Unix(), now.Nanosecond()/1000)
		}
		r.element(c, "expect", head+expectLine(t, x))
	}
	switch c.cmd {
	case cmdList:
		if c.family == 0 {
			c.family = packet.IPv4 // with connections, it means both
		}
		all := t.Expectations()
		for i := range all {
			if c.family == all[i].Tuple.Family {
				show(&all[i])
			}
		}
		r.closeXML("expect")
		r.summary("expectations have been shown.")
	case cmdGet:
		want := c.tuples().Orig
		for _, x := range t.Expectations() {
			if x.Covers(&want) {
				show(&x)
				r.closeXML("expect")
				r.summary("expectations have been shown.")
				return nil
			}
		}
		return errNoExpectation
	case cmdDelete:
		want := c.tuples().Orig
		if t.DeleteExpectations(func(x *conntrack.Expectation) bool { return x.Covers(&want) }) == 0 {
			return errNoExpectation
		}
		return r.counted(c, "expectations have been shown.") // none: the real one fails even so
	case cmdCreate:
		master := c.tuples().Orig
		v := &c.protoVals
		return t.CreateExpectation(&master, conntrack.Expectation{
			Tuple: conntrack.Tuple{Src: c.tupleSrc, Dst: c.tupleDst, SrcPort: uint16(v[poTupleSport]), DstPort: uint16(v[poTupleDport]), Proto: c.proto, Family: c.family},
			Mask:  conntrack.TupleMask{Src: c.maskSrc, SrcPort: uint16(v[poMaskSport])},
		})
	case cmdFlush:
		t.DeleteExpectations(func(*conntrack.Expectation) bool { return true })
		if !r.quiet {
			fmt.Fprintln(r.err, banner+": expectation table has been emptied.")
		}
	case cmdCount:
		fmt.Fprintln(r.out, t.ExpectCount())
	case cmdStats:
		for i, s := range t.Stats() {
			fmt.Fprintf(r.out, "cpu=%-4d\texpect_new=%d expect_create=%d expect_delete=%d \n", i, s.ExpectNew, s.ExpectCreate, s.ExpectDelete)
		}
	case cmdEvent:
		r.events(c)
	}
	return nil
}

// protoHelp lists a protocol's options.
func protoHelp(proto uint8) string {
	var b strings.Builder
	fmt.Fprintf(&b, "\nOptions with -p %s\n", protoName(proto))
	for _, l := range protoLongs(proto) {
		fmt.Fprintf(&b, "  --%s VALUE\n", l.name)
	}
	return b.String()
}

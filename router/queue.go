package router

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"sync"

	"sluice/conntrack"
	"sluice/hooks"
	"sluice/packet"
	"sluice/router/nfqueue"
	"sluice/tables"
)

var (
	reasonQueueNone = packet.NewReason("nfqueue.no_program", "no program has the queue that a rule sent the packet to")
	reasonQueueFull = packet.NewReason("nfqueue.full", "too many packets wait in the queue")
	reasonQueueDrop = packet.NewReason("nfqueue.verdict", "the program that has the queue dropped it")
	reasonQueueGone = packet.NewReason("nfqueue.gone", "the program gave the queue back, or the connection ended, while the packet waited")
)

// queue is where packets wait for a program's decisions (NFQUEUE). It is off the
// packet path: a packet that comes here is copied, and goes on from here.
type queue struct {
	r        *Router
	num      uint16
	max      int
	failOpen bool
	out      chan []byte // messages for the program; as many as may wait

	mu     sync.Mutex
	waits  map[uint32]*waiting
	next   uint32
	closed bool
}

// waiting is a packet in a queue, and where it goes on.
type waiting struct {
	w        *worker
	p        packet.Packet // its buffer is just large enough
	hook     hooks.Hook
	priority int
	ctGen    uint32
	outDev   *packet.Iface
}

// queues are the router's queues by number; what packets read is never written to.
type queues = map[uint16]*queue

const queueMax = 1024 // packets, as in Linux

// ServeQueue gives queue num to a program: it sends the packets that rules put
// there to out, and reads decisions from in until that ends or done is closed,
// in package nfqueue's form.
func (r *Router) ServeQueue(num uint16, o nfqueue.Options, in io.Reader, out io.Writer, done <-chan struct{}) error {
	if o.Max <= 0 {
		o.Max = queueMax
	}
	q := &queue{r: r, num: num, max: o.Max, failOpen: o.FailOpen, out: make(chan []byte, o.Max), waits: map[uint32]*waiting{}}
	if !r.setQueue(num, q) {
		return fmt.Errorf("queue %d has a program already", num)
	}
	defer q.close()
	if _, err := out.Write(make([]byte, 4)); err != nil {
		return err
	}
	ended := make(chan error, 1)
	go func() { ended <- q.decisions(in) }()
	for {
		select {
		case msg := <-q.out:
			if _, err := out.Write(msg); err != nil {
				return err
			}
		case err := <-ended:
			return err
		case <-done:
			return nil
		case <-r.stopping:
			return nil
		}
	}
}

// setQueue puts q in the place of number num; nil takes it out. false: taken.
func (r *Router) setQueue(num uint16, q *queue) bool {
	r.queueMu.Lock()
	defer r.queueMu.Unlock()
	next := queues{}
	if old := r.queues.Load(); old != nil {
		if q != nil && (*old)[num] != nil {
			return false
		}
		maps.Copy(next, *old)
	}
	if q == nil {
		delete(next, num)
	} else {
		next[num] = q
	}
	r.queues.Store(&next)
	return true
}

// decisions reads what the program says, until it says no more.
func (q *queue) decisions(in io.Reader) error {
	for {
		b, err := nfqueue.ReadMessage(in)
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		d, err := nfqueue.ParseDecision(b)
		if err != nil {
			return err
		}
		q.mu.Lock()
		x := q.waits[d.ID]
		delete(q.waits, d.ID)
		q.mu.Unlock()
		if x != nil {
			x.decide(d, reasonQueueDrop)
		}
	}
}

// close gives the queue back: what waits is dropped.
func (q *queue) close() {
	q.r.setQueue(q.num, nil)
	q.mu.Lock()
	q.closed = true
	waits := q.waits
	q.waits = nil
	q.mu.Unlock()
	for _, x := range waits {
		x.decide(&nfqueue.Decision{Verdict: nfqueue.Drop}, reasonQueueGone)
	}
}

// tablePriority is where a table stands in a hook.
func tablePriority(t tables.TableID, h hooks.Hook) int {
	switch t {
	case tables.Raw:
		return hooks.PriRaw
	case tables.Mangle:
		return hooks.PriMangle
	case tables.NAT:
		if h == hooks.Prerouting || h == hooks.Output {
			return hooks.PriNATDst
		}
		return hooks.PriNATSrc
	case tables.Security:
		return hooks.PriSecurity
	}
	return hooks.PriFilter
}

// queuePacket is what the NFQUEUE target calls.
func (w *worker) queuePacket(c *tables.Context, num uint16, bypass bool, p *packet.Packet) tables.Result {
	var q *queue
	if qs := w.r.queues.Load(); qs != nil {
		q = (*qs)[num]
	}
	if q == nil {
		if bypass {
			w.past = c.Table == tables.NAT
			return tables.Accept
		}
		p.Reason = reasonQueueNone
		return tables.Drop
	}
	if p.GSO.Type == packet.GSONone {
		res := q.park(w, c, p)
		w.past = c.Table == tables.NAT && res == tables.Accept
		return res
	}
	// A program sees packets, not super-packets.
	whole := w.alloc()
	ct, info := p.Ct, p.CtInfo
	whole.Copy(p)
	res := tables.Stolen
	packet.Segments(whole, func(s *packet.Packet) {
		s.Ct, s.CtInfo = ct, info
		if e := w.ct.Entry(s); e != nil && e.Status()&conntrack.Confirmed == 0 {
			ct, info = 0, packet.CtNone // only one of them can bring the connection into the table
		}
		if q.park(w, c, s) == tables.Drop {
			w.drops[s.Reason]++
		}
	})
	w.free(whole)
	p.Ct, p.CtInfo = 0, packet.CtNone
	return res
}

// park lets a packet wait. It takes p's connection along.
func (q *queue) park(w *worker, c *tables.Context, p *packet.Packet) tables.Result {
	p.CompleteChecksum()
	x := &waiting{w: w, hook: c.Hook, priority: tablePriority(c.Table, c.Hook), outDev: w.outDev}
	b := p.Bytes()
	x.p = *p
	x.p.Buf = append([]byte(nil), b...)
	x.p.Off, x.p.End = 0, len(b)
	if e := w.ct.Entry(p); e != nil {
		x.ctGen = e.Generation()
	}
	q.mu.Lock()
	defer q.mu.Unlock()
	if len(q.waits) >= q.max || q.closed || len(q.out) == cap(q.out) {
		if q.failOpen && !q.closed {
			return tables.Accept
		}
		p.Reason = reasonQueueFull
		return tables.Drop
	}
	q.next++
	q.waits[q.next] = x
	m := &nfqueue.Packet{ID: q.next, Queue: q.num, Hook: uint8(c.Hook), Family: p.Family, Mark: p.Mark, Payload: b}
	if p.In != nil {
		m.In = p.In.Name
	}
	if p.Out != nil {
		m.Out = p.Out.Name
	}
	q.out <- nfqueue.AppendPacket(nil, m)
	p.Ct, p.CtInfo = 0, packet.CtNone
	return tables.Stolen
}

// decide lets the packet go on, on its worker.
func (x *waiting) decide(d *nfqueue.Decision, why packet.Reason) {
	x.w.do(func(w *worker) {
		w.begin(w.r.clock())
		defer w.end()
		p := w.alloc()
		buf := p.Buf
		*p = x.p
		p.Buf, p.Off = buf, packet.Headroom
		p.End = p.Off + copy(buf[p.Off:], x.p.Bytes())
		p.Now = w.now
		if !w.goOn(x, d, p, why) {
			w.countDrop(p)
		}
		w.ct.EndEarly()
		w.settle()
		w.ct.Release(p)
		w.free(p)
		w.flush()
	})
}

// goOn takes a packet from where it was queued to its end.
func (w *worker) goOn(x *waiting, d *nfqueue.Decision, p *packet.Packet, why packet.Reason) bool {
	if e := w.ct.Entry(p); p.Ct != 0 && p.CtInfo != packet.CtNone && (e == nil || e.Generation() != x.ctGen) {
		p.Ct, p.CtInfo = 0, packet.CtNone // not its connection any more
		return drop(p, reasonQueueGone)
	}
	if d.Verdict == nfqueue.Drop {
		return drop(p, why)
	}
	src, dst, mark, tos := p.Src(), p.Dst(), p.Mark, p.TOS()
	if d.SetMark {
		p.Mark = d.Mark
	}
	if d.Payload != nil {
		if len(d.Payload) > packet.MaxLen {
			return drop(p, packet.DropTruncated)
		}
		family := p.Family
		p.End = p.Off + copy(p.Buf[p.Off:], d.Payload)
		p.Flags &^= packet.L4ChecksumOK
		if p.Reason = p.Parse(); p.Reason != 0 {
			return false
		}
		if p.Family != family {
			return drop(p, packet.DropBadVersion)
		}
	}
	w.outDev = x.outDev
	if x.hook == hooks.Output {
		// Unlike behind mangle, Linux compares no traffic class and no hop limit here.
		changed := p.Mark != mark || p.Src() != src || p.Dst() != dst || p.TOS() != tos && p.Family == packet.IPv4
		if changed && !w.reroute(p) {
			return false
		}
	}
	switch w.runFrom(x.hook, p, x.priority, d.Verdict == nfqueue.Repeat) {
	case hooks.Stolen:
		return true
	case hooks.Drop:
		return false
	}
	switch x.hook {
	case hooks.Prerouting:
		return w.routeIn(p)
	case hooks.Input:
		return w.inputDone(p)
	case hooks.Forward:
		return w.forwardDone(p)
	case hooks.Output:
		return w.outputDone(p)
	}
	return w.postroutingDone(p)
}

// runFrom is hooks.Run from behind the stage at a priority on, or with it.
func (w *worker) runFrom(h hooks.Hook, p *packet.Packet, priority int, with bool) hooks.Verdict {
	for i := range w.stages[family(p)][h] {
		s := &w.stages[family(p)][h][i]
		if s.Run != nil && (s.Priority < priority || s.Priority == priority && !with) {
			continue
		}
		for _, c := range s.Passed {
			c.Packets++
			c.Bytes += uint64(p.Len())
		}
		if s.Run == nil {
			break
		}
		if v := s.Run(p); v != hooks.Accept {
			return v
		}
	}
	return hooks.Accept
}

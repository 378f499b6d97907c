package router

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"sync/atomic"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ext"
)

// Watch is somebody who looks at packets of a running router: those that its
// rules' matches pick. A worker asks once a burst whether anybody watches; then
// packets that may match are taken through the router rule by rule, with a
// recorder, and all others as ever.
type Watch struct {
	opt     WatchOptions
	r       *Router
	filters [2][]*tables.Selector // by family; a packet that one of them picks is recorded
	traces  chan *Trace
	seq     atomic.Uint64
	left    atomic.Int64
	held    atomic.Int64 // bytes of frames in traces
	lost    atomic.Uint64
	ended   atomic.Bool
	close   sync.Once
}

// WatchOptions is what is looked at.
type WatchOptions struct {
	// Match is the matches of an iptables rule ("-p tcp --dport 80 -m conntrack
	// --ctstate NEW"); empty: all packets. IPv4 alone where it only reads as
	// IPv4's, and so on.
	Match  []string
	Count  int64 // traces; 0: no limit
	Log    bool  // Step.Log is wanted
	Frames int   // bytes of each frame to keep at each point; 0: no frames
	Queue  int   // traces that may wait for the reader; 0: 1024
}

const (
	watchQueue  = 1024
	watchFrames = 32 << 20 // bytes of frames that may wait for a reader
)

// want is a Watch that may want the packet at hand.
type want struct {
	*Watch
	early []*tables.Selector // those that still have to say yes
	sure  bool
}

// Watch begins to look. Close ends it; so does the end of the router.
func (r *Router) Watch(opt WatchOptions) (*Watch, error) {
	if opt.Queue == 0 {
		opt.Queue = watchQueue
	}
	v := &Watch{opt: opt, r: r, traces: make(chan *Trace, opt.Queue)}
	v.left.Store(opt.Count)
	if opt.Count == 0 {
		v.left.Store(1 << 62)
	}
	var errs []string
	for f, fam := range families {
		fs, err := Selectors(fam, opt.Match, r.envs[f])
		if err != nil {
			errs = append(errs, err.Error())
		}
		v.filters[f] = fs
	}
	if len(errs) == len(families) {
		return nil, fmt.Errorf("%s", errs[0])
	}
	r.watchMu.Lock()
	defer r.watchMu.Unlock()
	if r.closed.Load() {
		return nil, fmt.Errorf("the router has ended")
	}
	var all []*Watch
	if p := r.watches.Load(); p != nil {
		all = *p
	}
	all = append(slices.Clip(all), v)
	r.watches.Store(&all)
	return v, nil
}

// Selectors reads the matches of an iptables rule for one family.
func Selectors(fam uint8, match []string, env *tables.Env) ([]*tables.Selector, error) {
	rules, err := tables.ParseRule(ext.Registry, fam, tables.Mangle, "filter", match)
	if err != nil {
		return nil, fmt.Errorf("%s: %s", strings.Join(match, " "), strings.TrimSpace(err.Error()))
	}
	var out []*tables.Selector
	for _, rule := range rules {
		s, err := tables.NewSelector(rule, env)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", strings.Join(match, " "), err)
		}
		out = append(out, s)
	}
	return out, nil
}

// Traces gives what was recorded; it is closed after Count of them, and at the end.
func (v *Watch) Traces() <-chan *Trace { return v.traces }

// Next gives the next trace, with its texts; nil: there are no more.
func (v *Watch) Next(done <-chan struct{}) *Trace {
	select {
	case t, ok := <-v.traces:
		if !ok {
			return nil
		}
		v.release(t)
		t.text()
		return t
	case <-done:
		return nil
	}
}

func (v *Watch) release(t *Trace) { v.held.Add(-t.size()) }

func (t *Trace) size() (n int64) {
	for i := range t.Frames {
		n += int64(len(t.Frames[i].Data))
	}
	return n + int64(len(t.raw))
}

// Lost counts packets that matched and were not recorded because the reader was slow.
func (v *Watch) Lost() uint64 { return v.lost.Load() }

// Close ends the watch; when it returns no worker knows of it.
func (v *Watch) Close() {
	v.close.Do(func() {
		v.ended.Store(true)
		r := v.r
		r.watchMu.Lock()
		var rest []*Watch
		if p := r.watches.Load(); p != nil {
			for _, x := range *p {
				if x != v {
					rest = append(rest, x)
				}
			}
		}
		if len(rest) == 0 {
			r.watches.Store(nil)
		} else {
			r.watches.Store(&rest)
		}
		r.watchMu.Unlock()
		r.eachWorker(func(w *worker) { w.watching = w.r.watches.Load() })
		close(v.traces)
	})
}

// take hands a finished trace to the reader.
func (v *Watch) take(t *Trace) {
	if v.ended.Load() || v.left.Add(-1) < 0 {
		return
	}
	c := *t
	c.Seq = v.seq.Add(1)
	select {
	case v.traces <- &c:
		v.held.Add(c.size())
	default:
		v.lost.Add(1)
		v.left.Add(1)
		return
	}
	if v.left.Load() <= 0 && !v.ended.Swap(true) {
		go v.Close() // waits for the workers
	}
}

// full: there is no room for another trace; the packet is not recorded.
func (v *Watch) full() bool {
	return len(v.traces) == cap(v.traces) || v.held.Load() > watchFrames
}

// watchers finds who may want p, which is parsed if it can be.
func (w *worker) watchers(p *packet.Packet, parsed bool) (out []want) {
	for _, v := range *w.watching {
		if v.ended.Load() {
			continue
		}
		x := want{Watch: v}
		if parsed {
			f := family(p)
			for _, s := range v.filters[f] {
				if !s.Early(&w.ctx[f], p) {
					continue
				}
				if !s.NeedsLate() {
					x.sure = true
					break
				}
				x.early = append(x.early, s)
			}
		} else {
			x.sure = len(v.opt.Match) == 0
		}
		if !x.sure && len(x.early) == 0 {
			continue
		}
		if v.full() {
			if x.sure {
				v.lost.Add(1)
			}
			continue
		}
		out = append(out, x)
	}
	return out
}

// record begins to record p for those who want it; nil: nobody does.
func (w *worker) record(p *packet.Packet, parsed bool) *recorder {
	who := w.watchers(p, parsed)
	if len(who) == 0 && w.traced == nil {
		return nil
	}
	r := w.newRecorder(p)
	r.log = w.traceLog
	r.wants = who
	for _, v := range who {
		r.log = r.log || v.opt.Log
		r.frames = max(r.frames, v.opt.Frames)
	}
	return r
}

// ask lets those decide who look at what the router finds out.
func (r *recorder) ask(tracked bool) {
	p := r.p
	c := &r.w.ctx[family(p)]
	for i := range r.wants {
		x := &r.wants[i]
		for _, s := range x.early {
			if x.sure || s.NeedsOut() && p.Out == nil || !s.NeedsOut() && !tracked {
				continue
			}
			x.sure = s.Late(c, p)
		}
	}
}

// deliver hands the trace to those who want it.
func (r *recorder) deliver(t *Trace) {
	for i := range r.wants {
		if r.wants[i].sure {
			r.wants[i].take(t)
		}
	}
}

// receiveWatched is receiveAll while somebody watches: packets that nobody wants
// go as ever.
func (w *worker) receiveWatched(ps []*packet.Packet) {
	done := 0
	for i, p := range ps {
		p.Reason = p.Parse()
		p.Flags |= packet.Parsed
		r := w.record(p, p.Reason == 0)
		if r == nil {
			continue
		}
		w.receiveAll(ps[done:i])
		w.receiveRecorded(p, r)
		done = i + 1
	}
	w.receiveAll(ps[done:])
}

func (w *worker) receiveRecorded(p *packet.Packet, r *recorder) {
	w.rec = r
	if len(w.uplinks) > 0 && p.Reason == 0 {
		if peer, ok := w.truePeer(p); ok {
			r.note("published: the peer is " + peer.String())
		}
	}
	r.frame("in", false, "", nil)
	ok := w.prerouting(p)
	if !ok {
		w.countDrop(p)
	}
	w.endTrace(r, ok)
	w.settle()
	w.rec = nil
	w.ct.Release(p)
}

// sendOwnWatched is sendOwn while somebody watches: an answer to a packet that
// is recorded is recorded with it.
func (w *worker) sendOwnWatched(p *packet.Packet) {
	cause := w.rec
	p.Now, p.Worker = w.now, uint16(w.id)
	p.Flags |= packet.Local
	p.In = nil
	parsed := p.Family != 0 || p.Parse() == 0
	r := w.record(p, parsed)
	if cause != nil {
		if r == nil {
			r = w.newRecorder(p)
			r.log, r.frames = cause.log, cause.frames
		}
		for _, v := range cause.wants {
			if v.sure && !slices.ContainsFunc(r.wants, func(x want) bool { return x.Watch == v.Watch }) {
				r.wants = append(r.wants, want{Watch: v.Watch, sure: true})
			}
		}
	}
	w.rec = r
	if r != nil {
		r.t.Cause = "socket"
		if cause != nil {
			r.t.Cause = "answer"
		}
	}
	ok := w.output(p)
	if !ok {
		w.countDrop(p)
	}
	if r != nil {
		w.endTrace(r, ok)
	}
	w.rec = cause
	w.ct.Release(p)
	w.free(p)
}

func (w *worker) endTrace(r *recorder, ok bool) {
	if !ok {
		r.ask(true)
	}
	t := r.finish(ok)
	if !ok {
		r.frame("drop", true, "DROP", t.Rule)
	}
	if w.traced != nil {
		w.traced(t)
	}
	r.deliver(t)
}

// runRecorded is run for a packet that is recorded: every stage, those of tables
// that let everything pass as well.
func (w *worker) runRecorded(h hooks.Hook, p *packet.Packet) (done, ok bool) {
	r := w.rec
	r.p = p
	r.enter(h)
	r.ask(h != hooks.Prerouting && h != hooks.Output)
	v := hooks.Accept
	for i := range w.bound[h].rows {
		s := &w.bound[h].rows[i]
		before, n := p.CtInfo, p.Len()
		v = w.bound[h].run[i](p)
		r.stage(s.name, v, before, n)
		if s.name == "conntrack" {
			r.ask(true)
		}
		if v != hooks.Accept {
			break
		}
	}
	r.leave(h, v)
	switch v {
	case hooks.Accept:
		return false, true
	case hooks.Stolen:
		return true, true
	}
	return true, false
}

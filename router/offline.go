package router

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"sluice/netstack"
)

// offline: all interfaces are capture files. Such a router has no clock of its
// own: its time is the packets', and it ends with the last of them.
func (r *Router) offline() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.links) == 0 {
		return false
	}
	for _, l := range r.links {
		if l.cfg.Type != TypePcap {
			return false
		}
	}
	return true
}

// replay takes the packets of all capture files through the first worker, in
// the order of their timestamps, with the clock that the timestamps make.
func (r *Router) replay(ctx context.Context) error {
	r.replaying.Store(true)
	if r.opt.Ready != nil {
		r.opt.Ready()
	}
	r.mu.Lock()
	links := r.links
	r.mu.Unlock()
	w := r.workers[0]
	var start, clock int64
	for ctx.Err() == nil {
		first, at, err := earliest(links)
		if err != nil {
			return err
		}
		if first == nil {
			break
		}
		if start == 0 {
			start = at
			r.recorded.Store(start)
		}
		clock = max(clock, at-start)
		r.replayed.Store(clock)
		r.ct.Housekeep(clock)
		r.expireFragments(clock)
		w.do(func(w *worker) {
			w.begin(clock)
			defer w.end()
			p := w.batch[0]
			p.Reset()
			_, err := first.link.(*netstack.Pcap).ReadAt(p)
			switch {
			case err == nil:
				w.burst(w.port(first.iface), w.batch[:1])
			case errors.Is(err, netstack.ErrFrame):
				w.countDrop(p)
			}
		})
		r.settleLocal(w)
	}
	return nil
}

// earliest finds the interface whose next packet is the oldest; nil: all files have ended.
func earliest(links []*link) (first *link, at int64, err error) {
	for _, l := range links {
		t, err := l.link.(*netstack.Pcap).Next()
		if err == io.EOF {
			continue
		}
		if err != nil {
			return nil, 0, fmt.Errorf("interface %s: %w", l.cfg.Name, err)
		}
		if first == nil || t < at {
			first, at = l, t
		}
	}
	return first, at, nil
}

// settleLocal gives the local sockets, which run beside, the time to answer
// what was delivered to them, so that the outcome of a replay does not depend
// on luck. A replay is not in a hurry.
func (r *Router) settleLocal(w *worker) {
	if w.delivered == w.settled {
		return
	}
	w.settled = w.delivered
	for quiet := 0; quiet < 10; quiet++ {
		time.Sleep(200 * time.Microsecond)
		w.do(func(w *worker) {
			w.begin(r.clock())
			if w.drainLocal() {
				quiet = 0
			}
			w.end()
		})
	}
}

// readFiles reads the capture files of a router that has devices as well.
func (w *worker) readFiles() {
	for i := 0; i < len(w.files); {
		q := w.files[i]
		n := 0
		var err error
		for n < batchSize && err == nil {
			p := w.batch[n]
			p.Renew()
			if err = q.queue.Read(p); err == nil {
				n++
			} else if err == netstack.ErrFrame {
				w.countDrop(p)
				err = nil
			}
		}
		w.burst(q.port, w.batch[:n])
		if err == nil || err == netstack.ErrAgain {
			i++
			continue
		}
		if err != io.EOF {
			w.r.log.Error("reading a capture file", "interface", q.iface.Name, "err", err)
		}
		w.files = append(w.files[:i], w.files[i+1:]...)
	}
}

// wall turns a packet's clock into a time of day: a replay's is that of the captures.
func (r *Router) wall(now int64) time.Time {
	if start := r.recorded.Load(); start != 0 {
		return time.Unix(0, start+now)
	}
	return r.started.Add(time.Duration(now))
}

// timeOfDay is wall for what people set their watches by: it follows the
// machine's clock when that is put right.
func (r *Router) timeOfDay(now int64) time.Time {
	if start := r.recorded.Load(); start != 0 {
		return time.Unix(0, start+now)
	}
	return time.Now()
}

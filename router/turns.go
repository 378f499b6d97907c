package router

import (
	"sync"

	"golang.org/x/sys/unix"
)

// turns is what makes workers come before other work of the router's.
type turns struct {
	mu    sync.Mutex
	works int
}

// shortTurn is the shortest time that the kernel gives a thread at once, ns.
const shortTurn = 100_000

// Work says that a work begins that takes the router's processors, as loading
// many rules does; the function that it returns, that the work has ended.
// Meanwhile the workers' threads ask for short turns: who does that need not wait
// for the end of another thread's turn when a packet comes. At other times they do
// not, as larger batches are cheaper. Kernels before 6.12 do not care.
func (r *Router) Work() (end func()) {
	r.turns.begin(r, 1)
	return func() { r.turns.begin(r, -1) }
}

func (t *turns) begin(r *Router, n int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	was := t.works != 0
	t.works += n
	if (t.works != 0) == was {
		return
	}
	var slice uint64
	if !was {
		slice = shortTurn
	}
	for _, w := range r.workers {
		tid := int(w.tid.Load())
		if tid == 0 {
			continue // it does not run
		}
		a, err := unix.SchedGetAttr(tid, 0)
		if err != nil || a.Policy != 0 {
			continue // not SCHED_OTHER: somebody knows better
		}
		a.Runtime = slice // 0: the kernel's own
		_ = unix.SchedSetAttr(tid, a, 0)
	}
}

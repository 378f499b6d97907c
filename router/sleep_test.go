package router

import (
	"context"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// running is a router that runs until end is called.
func running(t *testing.T, workers int) (r *Router, end func() error) {
	t.Helper()
	ready := make(chan struct{})
	r, err := New(&Config{Router: RouterConfig{Workers: workers}}, Options{Ready: func() { close(ready) }})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { r.Close() })
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	<-ready
	return r, func() error { cancel(); return <-ended }
}

// TestSleepersDoNotStopTheRuntime: the runtime can stop the world, again and
// again, while workers sleep without its knowledge, and a worker's processor is
// given back at the end. If it could not, this would never end.
func TestSleepersDoNotStopTheRuntime(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	r, end := running(t, 3)
	for range 20 {
		for _, w := range r.workers {
			w.do(func(*worker) {}) // wakes it: it begins anew to sleep lightly
		}
		runtime.GC()
	}
	if n := runtime.GOMAXPROCS(0); n != before+3 {
		t.Errorf("GOMAXPROCS is %d with three workers, %d without", n, before)
	}
	if err := end(); err != nil {
		t.Fatal(err)
	}
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("GOMAXPROCS is %d in the end; it was %d", n, before)
	}
}

// TestWork: workers' threads have short turns as long as some work goes on, and
// those of the kernel's choice before and after.
func TestWork(t *testing.T) {
	r, end := running(t, 2)
	defer end()
	var own [2]uint64
	check := func(when string, short bool) {
		t.Helper()
		for i, w := range r.workers {
			w.do(func(*worker) {}) // it runs
			a, err := unix.SchedGetAttr(int(w.tid.Load()), 0)
			if err != nil {
				t.Fatal(err)
			}
			if own[i] == 0 {
				own[i] = a.Runtime
			}
			if want := map[bool]uint64{true: shortTurn, false: own[i]}[short]; a.Runtime != want {
				t.Errorf("%s: worker %d has turns of %d ns, want %d", when, i, a.Runtime, want)
			}
		}
	}
	check("before", false)
	if own[0] == 0 {
		t.Skip("needs Linux 6.12: turns that a thread chooses")
	}
	one, two := r.Work(), r.Work()
	check("two works", true)
	one()
	check("one work", true)
	two()
	check("after", false)
}

package router

import (
	"context"
	"runtime"
	"testing"
)

// TestSleepersDoNotStopTheRuntime: the runtime can stop the world, again and
// again, while workers sleep without its knowledge, and a worker's processor is
// given back at the end. If it could not, this would never end.
func TestSleepersDoNotStopTheRuntime(t *testing.T) {
	before := runtime.GOMAXPROCS(0)
	r, err := New(&Config{Router: RouterConfig{Workers: 3}}, Options{})
	if err != nil {
		t.Fatal(err)
	}
	defer r.Close()
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error)
	go func() { ended <- r.Run(ctx) }()
	for range 20 {
		for _, w := range r.workers {
			w.do(func(*worker) {}) // wakes it: it begins anew to sleep lightly
		}
		runtime.GC()
	}
	if n := runtime.GOMAXPROCS(0); n != before+3 {
		t.Errorf("GOMAXPROCS is %d with three workers, %d without", n, before)
	}
	cancel()
	if err := <-ended; err != nil {
		t.Fatal(err)
	}
	if n := runtime.GOMAXPROCS(0); n != before {
		t.Errorf("GOMAXPROCS is %d in the end; it was %d", n, before)
	}
}

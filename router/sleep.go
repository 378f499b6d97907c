package router

import (
	"os"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// wait looks for something to read. With nothing else to do, it spins first if
// it is to, then sleeps; the flow table's brackets are closed meanwhile.
func (w *worker) wait(events []unix.EpollEvent, idle bool) (n int, err error) {
	w.rested = 0
	if !idle {
		return w.poll(events, 0)
	}
	since := w.r.clock()
	defer func() {
		w.rested = w.r.clock() - since
		w.waited += w.rested
		w.ct.Rested(w.rested)
	}()
	for spin := int64(w.r.busyPoll); spin > 0; {
		if n, err = w.poll(events, 0); n > 0 || w.r.rings.Waiting(w.id) || w.r.clock()-since > spin {
			break
		}
	}
	if n > 0 {
		return n, err
	}
	if !w.r.rings.Arm(w.id) || w.commands.Load() != nil {
		return 0, nil
	}
	n, err = w.sleep(events)
	w.r.rings.Disarm(w.id)
	return n, err
}

// sleep waits without a limit. At first the scheduler does not hear of it:
// telling it costs more than the system call when packets come one by one, as
// its monitor then wakes every 20 µs to take the processor away and give it
// back. Whatever the runtime wants of this thread meanwhile it says with its
// preemption signal, which ends the call, as does the monitor's after 10 ms;
// from then on the worker sleeps like any other goroutine.
func (w *worker) sleep(events []unix.EpollEvent) (int, error) {
	if w.r.light {
		if n, err := w.poll(events, -1); err != unix.EINTR {
			return n, err
		}
	}
	return unix.EpollWait(w.epoll, events, -1)
}

// processors guards changes of GOMAXPROCS.
var processors sync.Mutex

// takeProcessors gives so many workers processors of Go's scheduler beside those
// that the program has, as each keeps one while it works and for 10 ms after.
// give takes them back. light: the workers may sleep behind the scheduler's
// back, that is, the runtime can interrupt them.
func takeProcessors(workers int) (light bool, give func()) {
	add := func(n int) {
		processors.Lock()
		defer processors.Unlock()
		runtime.GOMAXPROCS(runtime.GOMAXPROCS(0) + n)
	}
	add(workers)
	return !strings.Contains(os.Getenv("GODEBUG"), "asyncpreemptoff=1"), func() { add(-workers) }
}

// poll is epoll_wait as a raw system call; msec 0 does not block, -1 has no limit.
func (w *worker) poll(events []unix.EpollEvent, msec int) (int, error) {
	n, _, errno := syscall.RawSyscall6(unix.SYS_EPOLL_PWAIT, uintptr(w.epoll), uintptr(unsafe.Pointer(&events[0])), uintptr(len(events)), uintptr(msec), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// lonely is how long a worker has slept, at least, for what wakes it to be taken as a
// packet that comes alone.
const lonely = int64(5 * time.Microsecond)

package memory

import (
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// measure is how long f keeps the processor. On a machine that has other things
// to do the clock on the wall would count those too; on a quiet one both agree.
func measure(f func()) time.Duration {
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	start := threadTime()
	f()
	return threadTime() - start
}

func threadTime() time.Duration {
	var t unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_THREAD_CPUTIME_ID, &t); err != nil {
		panic(err) // every Linux has it
	}
	return time.Duration(t.Nano())
}

package confine

import (
	"bytes"
	"os"
	"runtime"
	"slices"
	"strconv"
	"syscall"

	"golang.org/x/sys/unix"
)

// Where no /proc can be mounted that fits a PID namespace (containers cover
// parts of theirs, and the kernel allows none with less covered then), programs
// would find other process numbers in /proc than the kernel tells them. So there
// is none: the command shares the PID namespace of the caller, the stage is a
// subreaper, which gets the orphans of the processes below, and Landlock keeps
// those from signalling anything else. Without that (before Linux 6.12) the
// namespace is made nevertheless, over the /proc that there is.

// keeper is a thread in the command's Landlock domain: it starts the command,
// and it can end the domain's processes all at once, and no others.
type keeper struct {
	orders chan func()
}

// newKeeper makes the thread. It lives as long as the process, since with it
// would end the command (PR_SET_PDEATHSIG).
func newKeeper() (*keeper, error) {
	k := &keeper{orders: make(chan func())}
	made := make(chan error)
	go aside(func() {
		err := scope()
		made <- err
		if err != nil {
			return
		}
		for f := range k.orders {
			f()
		}
	})
	if err := <-made; err != nil {
		return nil, err // whose killAll would know no bounds
	}
	return k, nil
}

// aside runs f on a thread of its own that is not the process' first: a signal
// to the process asks for the first thread's domain, which has to be outside.
func aside(f func()) {
	runtime.LockOSThread()
	if unix.Gettid() != unix.Getpid() {
		f()
		return
	}
	done := make(chan struct{})
	go func() { // elsewhere, as long as the first thread waits here
		defer close(done)
		runtime.LockOSThread()
		f()
	}()
	<-done
}

// do runs f on the thread.
func (k *keeper) do(f func()) {
	done := make(chan struct{})
	k.orders <- func() { f(); close(done) }
	<-done
}

// killAll ends every process of the domain, in one step that no fork can slip through.
func (k *keeper) killAll() { k.do(func() { syscall.Kill(-1, unix.SIGKILL) }) }

// subreaper makes the process the parent of what its descendants leave behind.
func subreaper() error { return unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }

// killOrphans ends the processes that became ours when a stage was killed, and
// what they leave to us in turn; others are not of those.
func killOrphans(others []int) {
	for {
		all := slices.DeleteFunc(children(), func(pid int) bool { return slices.Contains(others, pid) })
		if len(all) == 0 {
			return
		}
		for _, pid := range all {
			syscall.Kill(pid, unix.SIGKILL)
		}
		for _, pid := range all {
			for {
				if _, err := syscall.Wait4(pid, nil, 0, nil); err != syscall.EINTR {
					break
				}
			}
		}
	}
}

// children are the processes whose parent we are.
func children() (out []int) {
	own := []byte(strconv.Itoa(os.Getpid()))
	dirs, _ := os.ReadDir("/proc")
	for _, d := range dirs {
		pid, err := strconv.Atoi(d.Name())
		if err != nil {
			continue
		}
		stat, _ := os.ReadFile("/proc/" + d.Name() + "/stat")
		// PID (NAME) STATE PARENT …, and the name may hold anything.
		if i := bytes.LastIndexByte(stat, ')'); i >= 0 {
			if w := bytes.Fields(stat[i+1:]); len(w) > 1 && bytes.Equal(w[1], own) {
				out = append(out, pid)
			}
		}
	}
	return out
}

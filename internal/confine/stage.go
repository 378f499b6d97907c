package confine

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sluice/internal/host"
)

// IsStage reports whether the process was started as the stage, and is to call Stage.
func IsStage(argv []string) bool { return len(argv) >= 3 && argv[0] == stageName }

// Stage is the stage's main function; it gives the exit status.
func Stage(argv []string) int {
	fd, err := strconv.Atoi(argv[2])
	if err != nil {
		return 125
	}
	unix.CloseOnExec(fd)
	s := &stage{sock: &socket{fd}, command: argv[3:]}
	if argv[1] == "join" {
		return s.join()
	}
	return s.init()
}

// stage is the process that holds the namespaces, their init.
type stage struct {
	sock    *socket
	command []string
	setup   setup
	keeper  *keeper // of a subreaper; an init has none
	dir     int     // of setup.Remove; -1: none

	mu  sync.Mutex
	pid int // the command's; 0: it has not started, or has ended
}

func (s *stage) init() int {
	// An init gets no signal that it does not handle, but Go's runtime handles
	// them all and would end the process. The command has the defaults again.
	signals := make(chan os.Signal, 16)
	// A subreaper would also be stopped by the terminal's.
	signal.Notify(signals, syscall.SIGHUP, syscall.SIGINT, syscall.SIGQUIT, syscall.SIGTERM, syscall.SIGUSR1, syscall.SIGUSR2, syscall.SIGPIPE, syscall.SIGALRM,
		syscall.SIGTSTP, syscall.SIGTTIN, syscall.SIGTTOU)
	go func() {
		for range signals {
		}
	}()
	if err := s.prepare(); err != nil {
		if !errors.Is(err, errClosed) {
			s.sock.send(report{Error: err.Error()}, nil)
		}
		s.remove()
		return 125
	}
	go s.obey()
	return s.run()
}

// prepare makes everything as the command will find it, and waits for the word to go.
func (s *stage) prepare() error {
	s.dir = -1
	var o order
	fds, err := s.sock.receive(&o)
	if err != nil {
		return err
	}
	if o.Setup == nil {
		return errors.New("the first order is not the setup")
	}
	s.setup = *o.Setup
	if len(fds) > 0 {
		s.dir = fds[0]
	}
	if err := ownMounts(); err != nil {
		return err
	}
	if s.setup.Reaper {
		if err := subreaper(); err != nil {
			return fmt.Errorf("PR_SET_CHILD_SUBREAPER: %w", err)
		}
	} else if own, err := mountProc(); err != nil {
		return err
	} else if !own && landlockVersion() >= scopedVersion {
		s.dir = -1 // the caller goes on
		return errors.Join(s.sock.send(report{NoProc: true}, nil), errClosed)
	}
	opened, err := openDevice(&s.setup.Device, true)
	if err != nil {
		return err
	}
	err = s.sock.send(report{Device: opened}, opened.Queues)
	closeAll(opened.Queues)
	if err != nil {
		return err
	}
	if err := arrangeFiles(&s.setup); err != nil {
		return err
	}
	tuneNetwork()
	// The command is to find neither a capability here to use nor a process to trace.
	if err := host.Renounce(); err != nil {
		return fmt.Errorf("giving up capabilities: %w", err)
	}
	if err := unix.Prctl(unix.PR_SET_DUMPABLE, 0, 0, 0, 0); err != nil {
		return fmt.Errorf("PR_SET_DUMPABLE: %w", err)
	}
	if err := restrict(); err != nil {
		return err
	}
	if s.setup.Reaper {
		if s.keeper, err = newKeeper(); err != nil {
			return err
		}
	}
	if err := s.sock.send(report{Ready: true}, nil); err != nil {
		return err
	}
	o = order{}
	if _, err := s.sock.receive(&o); err != nil {
		return err
	}
	if !o.Go {
		return errors.New("the order to go is missing")
	}
	return nil
}

// obey takes the caller's orders until the caller is gone, and everything inside with it.
func (s *stage) obey() {
	for {
		var o order
		fds, err := s.sock.receive(&o)
		closeAll(fds)
		if err != nil {
			s.remove()
			s.endAll()
			os.Exit(125)
		}
		if o.Signal != 0 {
			s.mu.Lock()
			if s.pid > 0 {
				syscall.Kill(s.pid, syscall.Signal(o.Signal))
			}
			s.mu.Unlock()
		}
	}
}

// endAll ends what is inside where that does not end with us.
func (s *stage) endAll() {
	if s.keeper != nil {
		s.keeper.killAll()
	}
}

// remove takes away the file that a caller who was killed could not remove.
func (s *stage) remove() {
	if s.dir >= 0 {
		unix.Unlinkat(s.dir, s.setup.Remove, 0)
	}
}

// run starts the command and waits for it and for everything else inside.
func (s *stage) run() int {
	s.mu.Lock()
	pid, failed := s.start()
	s.pid = pid
	s.mu.Unlock()
	if failed != nil {
		s.sock.send(report{Exit: failed}, nil)
		return 0
	}
	for {
		var status syscall.WaitStatus
		got, err := syscall.Wait4(-1, &status, syscall.WUNTRACED, nil)
		switch {
		case err == syscall.EINTR:
			continue
		case err != nil: // ECHILD: that was the last
			return 0
		case got != pid:
			continue
		case status.Stopped():
			s.sock.send(report{Stopped: int(status.StopSignal())}, nil)
			continue
		}
		s.mu.Lock()
		s.pid = 0
		s.mu.Unlock()
		if s.sock.send(report{Exit: &Exit{Status: status}}, nil); s.setup.KillChildren {
			s.endAll()
			return 0
		}
	}
}

// start runs the command, on the keeper's thread if there is one.
func (s *stage) start() (pid int, failed *Exit) {
	attr := &syscall.ProcAttr{Env: os.Environ(), Files: []uintptr{0, 1, 2}}
	if s.keeper == nil {
		return start(s.command, attr)
	}
	attr.Sys = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	s.keeper.do(func() { pid, failed = start(s.command, attr) })
	return pid, failed
}

// start runs a command with our streams and whatever else was inherited.
func start(command []string, attr *syscall.ProcAttr) (pid int, failed *Exit) {
	path, err := look(command[0])
	if err == nil {
		pid, err = syscall.ForkExec(path, command, attr)
		if err == syscall.ENOEXEC { // a script without "#!", as execvp(3) does it
			pid, err = syscall.ForkExec("/bin/sh", append([]string{"/bin/sh", path}, command[1:]...), attr)
		}
	}
	if err == nil {
		return pid, nil
	}
	code := 126
	if errors.Is(err, fs.ErrNotExist) {
		code = 127
	}
	return 0, &Exit{Failed: true, Code: code, Text: fmt.Sprintf("%s: %v", command[0], bare(err))}
}

// look finds a program as execvp(3) does.
func look(name string) (string, error) {
	if strings.ContainsRune(name, '/') {
		return name, nil
	}
	if name == "" {
		return "", syscall.ENOENT
	}
	path, set := os.LookupEnv("PATH")
	if !set {
		path = "/bin:/usr/bin"
	}
	var denied error
	for _, dir := range filepath.SplitList(path) {
		if dir == "" {
			dir = "."
		}
		file := dir + "/" + name
		st, err := os.Stat(file)
		if err != nil || st.IsDir() {
			continue
		}
		if err := unix.Access(file, unix.X_OK); err == nil {
			return file, nil
		}
		denied = unix.EACCES
	}
	if denied != nil {
		return "", denied
	}
	return "", syscall.ENOENT
}

package control

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Handler runs a command; argv[0] is the name it is registered under. ctx ends
// when the client goes away or the server closes. It returns the exit status.
type Handler func(ctx context.Context, argv []string, stdin io.Reader, stdout, stderr io.Writer) int

const (
	maxClients  = 256              // whose commands run at once; more are refused
	maxSilent   = 256              // that have not said yet what they want; of more, the one that waits longest has to go
	requestTime = 10 * time.Second // in which a client has to say what it wants
)

// Server answers on one socket.
type Server struct {
	Path string
	Log  *slog.Logger // nil: slog's default
	// Outside refuses peers in PID namespaces below the server's own, and in other
	// user namespaces: what a router confines may not control it.
	Outside bool

	l        *net.UnixListener
	ctx      context.Context
	stop     context.CancelFunc
	wg       sync.WaitGroup
	slots    chan struct{}
	silentMu sync.Mutex
	silent   []net.Conn // oldest first
	mu       sync.RWMutex
	handlers map[string]Handler
}

// LiveError is Listen's answer where a router answers on the socket already.
type LiveError struct{ Path string }

func (e *LiveError) Error() string {
	return fmt.Sprintf("a sluice is already running on %s", e.Path)
}

// Listen makes the socket, mode 0600. One that nobody answers on is replaced;
// anything else at path is left alone and refused.
func Listen(path string) (*Server, error) {
	dir, err := os.Open(filepath.Dir(path))
	if err != nil {
		return nil, fmt.Errorf("the control socket's folder: %w", err)
	}
	defer dir.Close()
	// two routers that start at once must not both find the socket stale
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return nil, fmt.Errorf("the control socket's folder %s: flock: %w", dir.Name(), err)
	}
	if err := clear(path); err != nil {
		return nil, err
	}
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	if err != nil {
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, fmt.Errorf("the control socket: %w", err)
	}
	s := &Server{Path: path, l: l, handlers: map[string]Handler{}, slots: make(chan struct{}, maxClients)}
	s.ctx, s.stop = context.WithCancel(context.Background())
	return s, nil
}

// clear removes a socket that nobody listens on.
func clear(path string) error {
	st, err := os.Lstat(path)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	if st.Mode()&os.ModeSymlink != 0 { // our own kind of entry for a socket elsewhere
		if _, err := os.Stat(path); errors.Is(err, os.ErrNotExist) {
			return os.Remove(path)
		}
	} else if st.Mode()&os.ModeSocket == 0 {
		return fmt.Errorf("the control socket: %s is there and is not a socket", path)
	}
	switch live, err := alive(path); {
	case err != nil:
		return fmt.Errorf("the control socket: %s is in the way: %w", path, err)
	case live:
		return &LiveError{path}
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("the control socket: %w", err)
	}
	return nil
}

// alive reports whether somebody listens on the socket.
func alive(path string) (bool, error) {
	c, err := net.Dial("unix", path)
	switch {
	case err == nil:
		c.Close()
		return true, nil
	case errors.Is(err, syscall.ECONNREFUSED), errors.Is(err, syscall.ENOENT):
		return false, nil
	case errors.Is(err, syscall.EAGAIN): // its queue is full: there is one
		return true, nil
	}
	return false, err
}

// Handle registers a command.
func (s *Server) Handle(name string, h Handler) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.handlers[name] = h
}

// Serve answers until Close.
func (s *Server) Serve() error {
	for {
		c, err := s.l.AcceptUnix()
		if err != nil {
			if s.ctx.Err() != nil {
				return nil
			}
			if errors.Is(err, syscall.EMFILE) || errors.Is(err, syscall.ENFILE) || errors.Is(err, syscall.ECONNABORTED) {
				s.log().Warn("control socket", "err", err)
				select { // a full descriptor table does not get better by asking at once
				case <-s.ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
				continue
			}
			return fmt.Errorf("control socket: %w", err)
		}
		s.enter(c)
		s.wg.Add(1)
		go func() {
			defer func() { s.leave(c); c.Close(); s.wg.Done() }()
			s.serve(c)
		}()
	}
}

// enter counts a client among the silent ones. Those that only hold a
// connection cannot keep others out.
func (s *Server) enter(c net.Conn) {
	s.silentMu.Lock()
	defer s.silentMu.Unlock()
	if len(s.silent) >= maxSilent {
		s.silent[0].Close()
		s.silent = s.silent[1:]
	}
	s.silent = append(s.silent, c)
}

// leave takes a client off again: it has spoken, or is gone.
func (s *Server) leave(c net.Conn) {
	s.silentMu.Lock()
	defer s.silentMu.Unlock()
	if i := slices.Index(s.silent, c); i >= 0 {
		s.silent = slices.Delete(s.silent, i, i+1)
	}
}

// Close ends all requests, waits for them and removes the socket.
func (s *Server) Close() error {
	s.stop()
	err := s.l.Close()
	s.wg.Wait()
	return err
}

func (s *Server) log() *slog.Logger {
	if s.Log != nil {
		return s.Log
	}
	return slog.Default()
}

// refuse ends a connection in words; a client that does not read them has bad luck.
func refuse(c net.Conn, why string) {
	c.SetWriteDeadline(time.Now().Add(time.Second))
	writeFrame(c, frameRefused, []byte(why))
}

// checkPeer lets in who the socket is for: the router's own user, and root;
// with outside, not from a PID namespace below our own.
func checkPeer(c *net.UnixConn, outside bool) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	var cred *unix.Ucred
	var credErr error
	pidfd := -1
	if err := raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
		if n, err := unix.GetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_PEERPIDFD); err == nil {
			pidfd = n
		}
	}); err != nil {
		return err
	}
	if pidfd >= 0 {
		defer unix.Close(pidfd)
	}
	if credErr != nil {
		return credErr
	}
	if err := allowed(cred.Uid, uint32(os.Geteuid())); err != nil || !outside {
		return err
	}
	return checkOutside(int(cred.Pid), pidfd)
}

// checkOutside refuses a process that is deeper in PID namespaces than we are.
// pidfd, if the kernel has given one, tells whether pid is still the peer.
func checkOutside(pid, pidfd int) error {
	own, err := pidDepth("self")
	if err != nil {
		return err
	}
	theirs, err := pidDepth(strconv.Itoa(pid))
	if err == nil && pidfd >= 0 {
		err = unix.PidfdSendSignal(pidfd, 0, nil, 0)
		if errors.Is(err, unix.EPERM) { // root's; it is there
			err = nil
		}
	}
	switch {
	case err != nil:
		return fmt.Errorf("process %d may not control this router: where it is cannot be told: %w", pid, err)
	case theirs > own, elsewhere(pid):
		return fmt.Errorf("process %d may not control this router: it is one of those behind it", pid)
	}
	return nil
}

// elsewhere says whether a process is in another user namespace. One that we may
// not look at is not: whoever made a user namespace may look at everything in it.
func elsewhere(pid int) bool {
	own, err := os.Readlink("/proc/self/ns/user")
	if err != nil {
		return false // a kernel without them
	}
	theirs, err := os.Readlink("/proc/" + strconv.Itoa(pid) + "/ns/user")
	return err == nil && theirs != own
}

// pidDepth is how many PID namespaces a process has a number in.
func pidDepth(pid string) (int, error) {
	text, err := os.ReadFile("/proc/" + pid + "/status")
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(text)) {
		if list, ok := strings.CutPrefix(line, "NSpid:"); ok {
			return len(strings.Fields(list)), nil
		}
	}
	return 0, errors.New("/proc/" + pid + "/status has no NSpid")
}

func allowed(peer, own uint32) error {
	if peer != own && peer != 0 {
		return fmt.Errorf("uid %d may not control this router: it belongs to uid %d", peer, own)
	}
	return nil
}

func (s *Server) serve(c *net.UnixConn) {
	if err := checkPeer(c, s.Outside); err != nil {
		s.log().Warn("control socket: client refused", "reason", err)
		refuse(c, err.Error())
		return
	}
	s.converse(c)
}

// converse serves one client whose credentials are good.
func (s *Server) converse(c net.Conn) {
	ctx, cancel := context.WithCancel(s.ctx)
	defer cancel()
	defer context.AfterFunc(s.ctx, func() {
		c.SetReadDeadline(time.Unix(1, 0))
		c.SetWriteDeadline(time.Now().Add(time.Second)) // a client that does not read cannot keep the router from ending
	})()

	c.SetReadDeadline(time.Now().Add(requestTime))
	kind, data, err := readFrame(c, nil)
	var argv []string
	if err == nil && kind != frameRequest {
		err = errFrame(fmt.Sprintf("a frame of kind %q where a request belongs", kind))
	}
	if err == nil {
		argv, err = decodeRequest(data)
	}
	if err != nil {
		if malformed := errFrame(""); errors.As(err, &malformed) {
			refuse(c, "bad request: "+malformed.Error())
		}
		return
	}
	s.leave(c)
	select {
	case s.slots <- struct{}{}:
		defer func() { <-s.slots }()
	default:
		refuse(c, fmt.Sprintf("the router is serving %d clients already", maxClients))
		return
	}
	s.mu.RLock()
	h := s.handlers[argv[0]]
	s.mu.RUnlock()
	if h == nil {
		refuse(c, fmt.Sprintf("this router has no command %q", argv[0]))
		return
	}
	if s.ctx.Err() == nil {
		c.SetReadDeadline(time.Time{})
	}

	out := &output{c: c, ctx: ctx, cancel: cancel, opened: make(chan string, 1)}
	in := &input{ctx: ctx, out: out, frames: make(chan []byte, 1)}
	gone := make(chan struct{})
	go func() {
		defer close(gone)
		defer cancel() // the client went away, or talks nonsense
		if err := in.receive(c); err != nil {
			if malformed := errFrame(""); errors.As(err, &malformed) {
				out.last(frameRefused, []byte("bad request: "+malformed.Error()))
			}
		}
	}()
	status := s.run(ctx, h, argv, in, out)
	out.last(frameExit, []byte{byte(status)})
	c.Close()
	<-gone
}

// run calls the handler; a bug in it ends the request, not the router.
func (s *Server) run(ctx context.Context, h Handler, argv []string, in *input, out *output) (status int) {
	defer func() {
		if r := recover(); r != nil {
			s.log().Error("control socket: command failed", "command", argv[0], "panic", r, "stack", string(debug.Stack()))
			fmt.Fprintf(stream{out, frameErr}, "%s: internal error: %v\n", argv[0], r)
			status = 1
		}
	}()
	return h(ctx, argv, in, stream{out, frameOut}, stream{out, frameErr})
}

// output is the way to the client; stdout and stderr share it.
type output struct {
	mu     sync.Mutex
	c      net.Conn
	done   bool
	ctx    context.Context
	cancel context.CancelFunc
	asking bool        // for a file
	opened chan string // the answer

	patience time.Duration // how long one write may take; 0: as long as the client lives
}

// Patience cuts off a client that does not take what is written to it within d:
// for commands that go on and on. w is what a Handler was given.
func Patience(w io.Writer, d time.Duration) {
	if s, ok := w.(stream); ok {
		s.out.mu.Lock()
		s.out.patience = d
		s.out.mu.Unlock()
	}
}

var errGone = errors.New("the client is gone")

// Create makes a file on the client's side, with the rights of its user. What is
// written to stdout, which is what a Handler was given, goes there until the file
// is closed.
func Create(stdout io.Writer, name string) (io.WriteCloser, error) {
	s, ok := stdout.(stream)
	switch {
	case !ok:
		return nil, errors.ErrUnsupported
	case name == "":
		return nil, syscall.ENOENT
	case len(name) > maxName:
		return nil, syscall.ENAMETOOLONG
	}
	s.out.mu.Lock()
	s.out.asking = true
	s.out.mu.Unlock()
	if err := s.out.send(frameFile, []byte(name)); err != nil {
		return nil, err
	}
	select {
	case why := <-s.out.opened:
		if why != "" {
			return nil, errors.New(why)
		}
		return file{s}, nil
	case <-s.out.ctx.Done():
		return nil, errGone
	}
}

// file is what Create gives.
type file struct{ stream }

func (f file) Close() error { return f.out.send(frameFile, nil) }

// answer passes the client's answer to Create on; false: nothing was asked.
func (o *output) answer(why string) bool {
	o.mu.Lock()
	asked := o.asking
	o.asking = false
	o.mu.Unlock()
	if asked {
		o.opened <- why
	}
	return asked
}

func (o *output) send(kind byte, data []byte) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.done {
		return errGone
	}
	if o.patience > 0 {
		o.c.SetWriteDeadline(time.Now().Add(o.patience))
	}
	if err := writeFrame(o.c, kind, data); err != nil {
		o.done = true
		o.cancel()
		return errGone
	}
	return nil
}

func (o *output) last(kind byte, data []byte) {
	o.send(kind, data)
	o.mu.Lock()
	o.done = true
	o.mu.Unlock()
}

// stream is one of the two output streams.
type stream struct {
	out  *output
	kind byte
}

func (s stream) Write(p []byte) (n int, err error) {
	for len(p) > 0 {
		k := min(len(p), maxData)
		if err := s.out.send(s.kind, p[:k]); err != nil {
			return n, err
		}
		p, n = p[k:], n+k
	}
	return n, nil
}

// input is the command's standard input.
type input struct {
	ctx    context.Context
	out    *output
	frames chan []byte // at most the one asked for; nil: the end
	rest   []byte
	ended  bool

	mu     sync.Mutex
	wanted bool
}

// Read asks the client for more and waits for it.
func (in *input) Read(p []byte) (int, error) {
	if len(in.rest) == 0 && !in.ended {
		in.mu.Lock()
		in.wanted = true
		in.mu.Unlock()
		if err := in.out.send(frameWant, nil); err != nil {
			return 0, err
		}
		select {
		case <-in.ctx.Done():
			return 0, errGone
		case in.rest = <-in.frames:
			in.ended = len(in.rest) == 0
		}
	}
	if in.ended {
		return 0, io.EOF
	}
	n := copy(p, in.rest)
	in.rest = in.rest[n:]
	return n, nil
}

// receive takes the client's frames until it goes away. What nobody asked for is an error.
func (in *input) receive(c net.Conn) error {
	for {
		kind, data, err := readFrame(c, nil)
		if err != nil {
			return err
		}
		if kind == frameOpened {
			if !in.out.answer(string(data)) {
				return errFrame("an answer that nothing asked for")
			}
			continue
		}
		in.mu.Lock()
		wanted := in.wanted
		in.wanted = false
		in.mu.Unlock()
		switch {
		case kind != frameInput && kind != frameEnd:
			return errFrame(fmt.Sprintf("a frame of kind %q where standard input belongs", kind))
		case !wanted:
			return errFrame("standard input that nothing asked for")
		case kind == frameInput && len(data) == 0:
			return errFrame("a frame of standard input without any")
		case kind == frameEnd:
			data = nil
		}
		select {
		case in.frames <- data:
		case <-in.ctx.Done():
			return nil
		}
	}
}

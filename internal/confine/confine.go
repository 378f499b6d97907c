// Package confine runs a command in namespaces of its own, whose only way to a
// network is a device that the caller gets the queues of.
//
// Three processes take part. The caller stays where it is. Start makes a child,
// the stage: the same binary under another name, in new user, mount, network
// and PID namespaces, of the last of which it is the init. The stage makes the
// device and hands its queues out, mounts, gives up every capability, and then
// starts the command as the user that the caller is. A socket pair joins caller
// and stage. When the caller ends, however it does, the stage sees its end of
// the pair close and ends too, and with it the kernel ends every process inside;
// with the last one go the namespaces and the device. Where there can be no PID
// namespace, the stage is a subreaper; see reaper.go.
package confine

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"

	"sluice/internal/host"
)

// Config says what to run, and what it finds there.
type Config struct {
	Command []string // argv; the program is looked up in $PATH inside
	Device  Device
	// ResolvConf is what /etc/resolv.conf says inside; nil: what it says outside.
	ResolvConf []byte
	// Hide are paths that are empty inside: a folder is an empty one, anything
	// else /dev/null. One that is not there is an error.
	Hide []string
	// HideIfThere is Hide for paths that need not exist.
	HideIfThere []string
	// KillChildren ends what the command left behind when it ends; otherwise
	// the stage lives until the last process has ended.
	KillChildren bool
	// Remove is a file, such as a socket, that the stage removes when the caller
	// died without doing so; "": none.
	Remove string
}

// Device is the network device inside.
type Device struct {
	Kind      string // DeviceAuto, DeviceTUN, DeviceVeth or DeviceTAP
	Name      string
	MTU       int // bytes
	Queues    int
	Addresses []netip.Prefix // the kernel's own
	Routes    []host.Route
	MAC       [6]byte // of a TAP device; zero: the kernel's choice
	Raw       bool    // the device is made and left as it is: not up, without addresses
}

// Kinds of device.
const (
	DeviceAuto = "auto" // TUN, or veth where /dev/net/tun cannot be had
	DeviceTUN  = "tun"
	DeviceVeth = "veth" // its far end is in a second namespace, behind packet sockets
	DeviceTAP  = "tap"
)

// Opened is a device whose queues have arrived.
type Opened struct {
	Kind   string  // DeviceTUN, DeviceVeth or DeviceTAP
	Queues []int   // descriptors, the caller's
	MAC    [6]byte // the router's end's, of a veth pair
	// Instead says why it is not a TUN device; "" if it is, or if veth was asked for.
	Instead string
}

// Exit is how the command ended.
type Exit struct {
	Status syscall.WaitStatus
	// Failed: the command could not be run; Code is the exit status for that
	// (126 or 127, as env(1) has them), and Text says why.
	Failed bool
	Code   int
	Text   string
}

// Process is a command with its namespaces.
type Process struct {
	cfg    *Config
	reaper bool  // the stage is a subreaper, and no init
	others []int // children that we had before it
	cmd    *exec.Cmd
	sock   *socket
	tty    *terminal

	mu   sync.Mutex
	exit *Exit
	done chan struct{}
	err  error
}

// ErrGone: the stage has ended before it had anything to say, as when it is killed.
var ErrGone = errors.New("the process that holds the namespaces was killed")

// stageName is the name that the binary is started under as the stage.
const stageName = "sluice-inside"

// Start makes the namespaces and the process that holds them. The command
// starts with Go, after Device.
func Start(cfg *Config) (*Process, error) {
	p := &Process{cfg: cfg, tty: openTerminal(), done: make(chan struct{})}
	if err := p.begin(); err != nil {
		return nil, err
	}
	return p, nil
}

// begin starts the stage.
func (p *Process) begin() error {
	ours, theirs, err := socketPair()
	if err != nil {
		return err
	}
	defer theirs.Close()
	attr := &syscall.SysProcAttr{
		Cloneflags: unix.CLONE_NEWUSER | unix.CLONE_NEWNS | unix.CLONE_NEWNET | unix.CLONE_NEWPID,
		// The command's own process group: what is inside cannot reach ours with kill(0).
		Setpgid:     true,
		AmbientCaps: []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_NET_ADMIN, unix.CAP_NET_RAW},
	}
	if p.reaper {
		attr.Cloneflags &^= unix.CLONE_NEWPID
	}
	err = mapIDs(attr)
	if err == nil {
		// Not one of ExtraFiles: those take the place of descriptors that the command inherits.
		_, err = unix.FcntlInt(theirs.Fd(), unix.F_SETFD, 0)
	}
	if err != nil {
		ours.Close()
		return err
	}
	p.sock = ours
	p.cmd = &exec.Cmd{
		Path:        "/proc/self/exe",
		Args:        append([]string{stageName, "init", strconv.Itoa(int(theirs.Fd()))}, p.cfg.Command...),
		Stdin:       os.Stdin,
		Stdout:      os.Stdout,
		Stderr:      os.Stderr,
		SysProcAttr: attr,
	}
	if err := p.cmd.Start(); err != nil {
		ours.Close()
		return explainNamespaces(err)
	}
	if err := p.send(p.cfg); err != nil {
		p.Kill()
		return err
	}
	return nil
}

// beginAnew starts another stage, a subreaper, where no /proc fits the first one's namespace.
func (p *Process) beginAnew() error {
	p.Kill()
	unix.Close(p.sock.fd)
	p.reaper, p.others = true, children()
	if err := subreaper(); err != nil { // for what a stage leaves that is killed
		return fmt.Errorf("PR_SET_CHILD_SUBREAPER: %w", err)
	}
	return p.begin()
}

func (p *Process) send(cfg *Config) error {
	var fds []int
	order := order{Setup: &setup{Device: cfg.Device, ResolvConf: cfg.ResolvConf, Hide: cfg.Hide, HideIfThere: cfg.HideIfThere, KillChildren: cfg.KillChildren, Reaper: p.reaper}}
	if cfg.Remove != "" {
		dir, file := splitPath(cfg.Remove)
		fd, err := unix.Open(dir, unix.O_PATH|unix.O_DIRECTORY|unix.O_CLOEXEC, 0)
		if err != nil {
			return fmt.Errorf("%s: %w", dir, err)
		}
		defer unix.Close(fd)
		fds, order.Setup.Remove = []int{fd}, file
	}
	return p.sock.send(order, fds)
}

func splitPath(path string) (dir, file string) {
	i := strings.LastIndexByte(path, '/')
	if i < 0 {
		return ".", path
	}
	return path[:i+1], path[i+1:]
}

// PID is the stage's, as seen from outside.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Device waits for the device's queues.
func (p *Process) Device() (*Opened, error) {
	r, fds, err := p.receive()
	if err == nil && r.NoProc {
		if err = p.beginAnew(); err == nil {
			r, fds, err = p.receive()
		}
	}
	if err != nil {
		closeAll(fds)
		return nil, err
	}
	if r.Device == nil {
		closeAll(fds)
		return nil, fmt.Errorf("the stage said %+v where a device belongs", r)
	}
	r.Device.Queues = fds
	return r.Device, nil
}

// Ready waits until everything inside is as the command will find it.
func (p *Process) Ready() error {
	r, fds, err := p.receive()
	closeAll(fds)
	if err == nil && !r.Ready {
		err = fmt.Errorf("the stage said %+v where it should be ready", r)
	}
	return err
}

// receive reads one report; an error in it is the stage's.
func (p *Process) receive() (*report, []int, error) {
	r := &report{}
	fds, err := p.sock.receive(r)
	if err != nil {
		return nil, fds, p.ended(err)
	}
	if r.Error != "" {
		return nil, fds, errors.New(r.Error)
	}
	return r, fds, nil
}

// ended explains a socket that closed.
func (p *Process) ended(err error) error {
	if !errors.Is(err, errClosed) {
		return err
	}
	return ErrGone
}

// Go starts the command and gives it the terminal, if it is ours to give. From
// here on Wait is to be called.
func (p *Process) Go() error {
	p.tty.give(p.PID())
	if err := p.sock.send(order{Go: true}, nil); err != nil {
		p.tty.take()
		return p.ended(err)
	}
	go p.attend()
	return nil
}

// attend reads what the stage has to say until it ends.
func (p *Process) attend() {
	defer close(p.done)
	for {
		r := &report{}
		fds, err := p.sock.receive(r)
		closeAll(fds)
		if err != nil {
			break
		}
		switch {
		case r.Exit != nil:
			p.mu.Lock()
			p.exit = r.Exit
			p.mu.Unlock()
			p.tty.take()
		case r.Stopped != 0:
			p.tty.suspend(r.Stopped, p.PID())
		}
	}
	p.waitStage()
	p.tty.take()
	p.mu.Lock()
	if p.exit == nil {
		p.err = ErrGone
	}
	p.mu.Unlock()
}

// Wait waits until the last process inside has ended, and gives the command's exit.
func (p *Process) Wait() (*Exit, error) {
	<-p.done
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.exit, p.err
}

// Done is closed when the last process inside has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Signal sends the command a signal.
func (p *Process) Signal(sig syscall.Signal) error {
	return p.sock.send(order{Signal: int(sig)}, nil)
}

// Kill ends everything inside, at any time.
func (p *Process) Kill() {
	p.cmd.Process.Kill()
	p.sock.Close()
	p.waitStage()
	p.tty.take()
}

// waitStage waits for the stage's end, and ends what a subreaper that was killed left behind.
func (p *Process) waitStage() {
	p.cmd.Wait()
	if st := p.cmd.ProcessState; p.reaper && st != nil && st.ExitCode() < 0 {
		killOrphans(p.others)
	}
}

// order is what the caller tells the stage.
type order struct {
	Setup  *setup `json:",omitempty"`
	Go     bool   `json:",omitempty"`
	Signal int    `json:",omitempty"`
}

type setup struct {
	Device            Device
	ResolvConf        []byte
	Hide, HideIfThere []string
	KillChildren      bool
	Reaper            bool
	Remove            string // in the folder whose descriptor comes along
}

// report is what the stage tells the caller.
type report struct {
	Error   string  `json:",omitempty"`
	Device  *Opened `json:",omitempty"`
	NoProc  bool    `json:",omitempty"` // no /proc fits the PID namespace; the stage ends
	Ready   bool    `json:",omitempty"`
	Exit    *Exit   `json:",omitempty"`
	Stopped int     `json:",omitempty"` // the signal that stopped the command
}

// socket carries JSON and descriptors, one message each.
type socket struct{ fd int }

const (
	maxMessage = 64 << 10
	maxFDs     = 250 // the kernel takes 253 in one message
)

var errClosed = errors.New("closed")

// socketPair gives our end, and the other one as a file.
func socketPair() (*socket, *os.File, error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, fmt.Errorf("socketpair: %w", err)
	}
	return &socket{fds[0]}, os.NewFile(uintptr(fds[1]), "stage"), nil
}

func (s *socket) Close() error { return unix.Shutdown(s.fd, unix.SHUT_RDWR) }

func (s *socket) send(v any, fds []int) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if len(text) > maxMessage || len(fds) > maxFDs {
		return fmt.Errorf("a message of %d bytes and %d descriptors is more than fits", len(text), len(fds))
	}
	var rights []byte
	if len(fds) > 0 {
		rights = unix.UnixRights(fds...)
	}
	for {
		err := unix.Sendmsg(s.fd, text, rights, nil, unix.MSG_NOSIGNAL)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EPIPE, err == unix.ECONNRESET, err == unix.ENOTCONN:
			return errClosed
		}
		return err
	}
}

// receive reads a message into v; the descriptors are the caller's.
func (s *socket) receive(v any) ([]int, error) {
	buf, oob := make([]byte, maxMessage), make([]byte, unix.CmsgSpace(4*maxFDs))
	for {
		n, on, _, _, err := unix.Recvmsg(s.fd, buf, oob, unix.MSG_CMSG_CLOEXEC)
		if err == unix.EINTR {
			continue
		}
		if err == unix.ECONNRESET || err == nil && n == 0 {
			return nil, errClosed
		}
		if err != nil {
			return nil, err
		}
		fds, err := rights(oob[:on])
		if err != nil {
			return nil, err
		}
		return fds, json.Unmarshal(buf[:n], v)
	}
}

func rights(oob []byte) ([]int, error) {
	messages, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil, err
	}
	var fds []int
	for i := range messages {
		if got, err := unix.ParseUnixRights(&messages[i]); err == nil {
			fds = append(fds, got...)
		}
	}
	return fds, nil
}

func closeAll(fds []int) {
	for _, fd := range fds {
		unix.Close(fd)
	}
}

package netstack

import (
	"bufio"
	"bytes"
	"compress/gzip"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/gopacket"
	"github.com/google/gopacket/layers"
	"github.com/google/gopacket/pcapgo"

	"sluice/packet"
)

// PcapConfig describes an interface whose frames come from one file and go to another.
type PcapConfig struct {
	Name   string
	Index  int
	MTU    int    // bytes; 0: 1500
	Queues int    // at least 1; frames come in on the first
	Read   string // pcap or pcapng, also gzipped; "": nothing comes in
	Write  string // *.pcapng, or *.pcap with nanoseconds; "": what leaves is thrown away
	// Wall turns a packet's clock (p.Now) into the time that is written with
	// it; nil: the time of writing.
	Wall func(now int64) time.Time
}

// Pcap is an interface made of files. Reading belongs to queue 0's goroutine;
// all queues may write.
type Pcap struct {
	iface  atomic.Pointer[packet.Iface]
	queues []pcapQueue
	wall   func(int64) time.Time

	in      io.Closer
	path    string
	src     gopacket.ZeroCopyPacketDataSource
	link    linkType // of a classic pcap file
	mixed   bool     // pcapng: each frame's own
	count   int      // frames read from the file so far
	next    []byte   // read ahead by Next; owned by src
	nextAt  time.Time
	nextTyp linkType
	ended   error

	mu   sync.Mutex // of what follows
	out  *os.File
	buf  *bufio.Writer
	sink interface {
		WritePacket(gopacket.CaptureInfo, []byte) error
	}
	flush func() error
}

// OpenPcap opens both files; the one to write is made anew.
func OpenPcap(cfg PcapConfig) (*Pcap, error) {
	if cfg.MTU == 0 {
		cfg.MTU = 1500
	}
	l := &Pcap{wall: cfg.Wall, ended: io.EOF}
	if l.wall == nil {
		l.wall = func(int64) time.Time { return time.Now() }
	}
	l.iface.Store(packet.NewIface(cfg.Index, cfg.Name, cfg.MTU))
	l.queues = make([]pcapQueue, max(cfg.Queues, 1))
	for i := range l.queues {
		q := &l.queues[i]
		q.l, q.first, q.emit = l, i == 0, q.emitSegment
	}
	if cfg.Read != "" {
		if err := l.openRead(cfg.Read); err != nil {
			return nil, err
		}
	}
	if cfg.Write != "" {
		if err := l.openWrite(cfg); err != nil {
			l.Close()
			return nil, err
		}
	}
	return l, nil
}

func (l *Pcap) openRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	if err := l.source(f); err != nil {
		f.Close()
		return fmt.Errorf("%s: %w", path, err)
	}
	l.in, l.path, l.ended = f, path, nil
	return nil
}

// source recognises the file's format.
func (l *Pcap) source(f io.Reader) error {
	r := bufio.NewReaderSize(f, 1<<16)
	if head, _ := r.Peek(2); bytes.Equal(head, []byte{0x1f, 0x8b}) {
		z, err := gzip.NewReader(r)
		if err != nil {
			return err
		}
		r = bufio.NewReaderSize(z, 1<<16)
	}
	head, err := r.Peek(4)
	if err != nil {
		return errors.New("the file is too short to be a capture")
	}
	if binary.LittleEndian.Uint32(head) == ngSection {
		src, err := pcapgo.NewNgReader(&blockGuard{r: r}, pcapgo.NgReaderOptions{WantMixedLinkType: true})
		if err != nil {
			return noEOF(err)
		}
		l.src, l.mixed = src, true
		return nil
	}
	head, err = r.Peek(24)
	if err != nil {
		return errors.New("the file is too short to be a capture")
	}
	var order binary.ByteOrder = binary.LittleEndian
	switch m := binary.BigEndian.Uint32(head); m {
	case 0xa1b2c3d4, 0xa1b23c4d:
		order = binary.BigEndian
	case 0xd4c3b2a1, 0x4d3cb2a1:
	default:
		return fmt.Errorf("neither a pcap nor a pcapng file (it begins with %#08x)", m)
	}
	// The upper bits say whether frames end in a checksum.
	if l.link, err = linkCode(order.Uint32(head[20:]) & 0x03ffffff); err != nil {
		return err
	}
	src, err := pcapgo.NewReader(r)
	if err != nil {
		return err
	}
	src.SetSnaplen(maxCapture) // many writers do not keep to their own
	l.src = src
	return nil
}

func noEOF(err error) error {
	if err == io.EOF {
		return io.ErrUnexpectedEOF
	}
	return err
}

func (l *Pcap) openWrite(cfg PcapConfig) error {
	ng := false
	switch strings.ToLower(filepath.Ext(cfg.Write)) {
	case ".pcapng", ".ntar":
		ng = true
	case ".pcap", ".cap", ".dmp":
	default:
		return fmt.Errorf("%s: the name of a capture file ends in .pcap or .pcapng", cfg.Write)
	}
	f, err := os.Create(cfg.Write)
	if err != nil {
		return err
	}
	l.out = f
	if ng {
		w, err := pcapgo.NewNgWriterInterface(f, pcapgo.NgInterface{
			Name: cfg.Name, LinkType: layers.LinkTypeRaw, TimestampResolution: 9,
		}, pcapgo.NgWriterOptions{SectionInfo: pcapgo.NgSectionInfo{Application: "sluice"}})
		if err != nil {
			return err
		}
		l.sink, l.flush = w, w.Flush
		return w.Flush()
	}
	l.buf = bufio.NewWriterSize(f, 1<<16)
	w := pcapgo.NewWriterNanos(l.buf)
	l.sink, l.flush = w, l.buf.Flush
	if err := w.WriteFileHeader(maxCapture, layers.LinkTypeRaw); err != nil {
		return err
	}
	return l.buf.Flush()
}

// Next is the time of the next frame, in nanoseconds since 1970, without
// taking it: with it several files are replayed in one order. io.EOF: there is
// none. Another error says which packet of the file is broken; no more follow.
func (l *Pcap) Next() (int64, error) {
	if l.next == nil && l.ended == nil {
		l.advance()
	}
	if l.ended != nil {
		return 0, l.ended
	}
	if l.nextAt.IsZero() {
		return 0, nil // a simple packet block has no time
	}
	return l.nextAt.UnixNano(), nil
}

// ReadAt reads a frame as Read does, and gives its time.
func (l *Pcap) ReadAt(p *packet.Packet) (int64, error) {
	at, err := l.Next()
	if err != nil {
		return 0, err
	}
	b := l.next
	l.next = nil
	off, cast, ok := l.nextTyp.network(b)
	switch {
	case !ok:
		p.Reason = ReasonNotIP
		return at, ErrFrame
	case len(b)-off > packet.MaxLen:
		p.Reason = ReasonFrameTooLong
		return at, ErrFrame
	}
	p.Off = packet.Headroom
	p.End = p.Off + copy(p.Buf[p.Off:], b[off:])
	p.PktType = cast
	return at, nil
}

func (l *Pcap) advance() {
	b, ci, err := l.src.ZeroCopyReadPacketData()
	// pcapgo says io.EOF as well where a frame is missing behind its header.
	if err == io.EOF && ci.CaptureLength == 0 {
		l.ended = io.EOF
		return
	}
	if err != nil {
		l.ended = fmt.Errorf("%s: packet %d: %w", l.path, l.count+1, noEOF(err))
		return
	}
	l.count++
	l.next, l.nextAt, l.nextTyp = b, ci.Timestamp, l.link
	if b == nil {
		l.next = []byte{}
	}
	if l.mixed {
		t, _ := ci.AncillaryData[0].(layers.LinkType)
		l.nextTyp = linkType(t)
	}
}

// Iface is the interface; see Link.
func (l *Pcap) Iface() *packet.Iface { return l.iface.Load() }

// Queues is the number of queues.
func (l *Pcap) Queues() int { return len(l.queues) }

// Queue is the i-th queue. It has no descriptor to wait on.
func (l *Pcap) Queue(i int) Queue { return &l.queues[i] }

// SetMTU changes the MTU (bytes).
func (l *Pcap) SetMTU(mtu int) error {
	i := l.iface.Load()
	l.iface.Store(packet.NewIface(i.Index, i.Name, mtu))
	return nil
}

// Close writes what is held back and closes both files.
func (l *Pcap) Close() error {
	var errs []error
	if l.in != nil {
		errs = append(errs, l.in.Close())
		l.in, l.ended = nil, io.EOF
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.out != nil {
		if l.flush != nil {
			errs = append(errs, l.flush())
		}
		errs = append(errs, l.out.Close())
		l.out, l.sink, l.flush = nil, nil, nil
	}
	return errors.Join(errs...)
}

type pcapQueue struct {
	l     *Pcap
	first bool
	emit  func(*packet.Packet)
	err   error
}

func (q *pcapQueue) FD() int { return -1 }

func (q *pcapQueue) Read(p *packet.Packet) error {
	if !q.first {
		return io.EOF
	}
	_, err := q.l.ReadAt(p)
	return err
}

func (q *pcapQueue) Write(p *packet.Packet) error {
	if p.GSO.Type != packet.GSONone {
		q.err = nil
		packet.Segments(p, q.emit)
		return q.err
	}
	p.CompleteChecksum()
	return q.l.write(p)
}

func (q *pcapQueue) emitSegment(p *packet.Packet) {
	if err := q.l.write(p); err != nil && q.err == nil {
		q.err = err
	}
}

func (l *Pcap) write(p *packet.Packet) error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.sink == nil {
		return nil
	}
	b := p.Bytes()
	if err := l.sink.WritePacket(gopacket.CaptureInfo{Timestamp: l.wall(p.Now), CaptureLength: len(b), Length: len(b)}, b); err != nil {
		p.Reason = ReasonSendError
		return ErrSend
	}
	return nil
}

func (q *pcapQueue) Flush() error {
	q.l.mu.Lock()
	defer q.l.mu.Unlock()
	if q.l.flush == nil {
		return nil
	}
	return q.l.flush()
}

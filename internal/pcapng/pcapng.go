// Package pcapng writes captures with a comment on each packet: the format of
// draft-ietf-opsawg-pcapng, little-endian, raw IP, nanoseconds.
package pcapng

import (
	"encoding/binary"
	"io"
	"math"
	"time"
)

// Packet is one frame of a capture.
type Packet struct {
	Iface    string // an interface block is written for each name
	Time     time.Time
	Data     []byte
	Len      int // of the packet as it was; Data may be shorter
	Comment  string
	Inbound  bool
	Outbound bool
	Lost     uint64 // packets that matched and were lost before this one
}

// Writer writes one section.
type Writer struct {
	w      io.Writer
	buf    []byte
	ifaces map[string]uint32
	snap   uint32
	count  map[string]uint64
	err    error
}

const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockStats     = 5
	blockEnhanced  = 6
	magic          = 0x1a2b3c4d
	linkRaw        = 101 // LINKTYPE_RAW: IPv4 or IPv6, by the first four bits

	optEnd        = 0
	optComment    = 1
	optIfName     = 2
	optTSResol    = 9
	optShbUser    = 4 // the program that wrote it
	optEpbFlags   = 2
	optEpbDropped = 4
	optIsbRecv    = 4
	optIsbDrop    = 5
)

var le = binary.LittleEndian

// NewWriter begins a capture. program is named in its header; snaplen is the most
// bytes of a packet that are kept.
func NewWriter(w io.Writer, program string, snaplen int) (*Writer, error) {
	x := &Writer{w: w, ifaces: map[string]uint32{}, count: map[string]uint64{}, snap: uint32(snaplen)}
	x.begin(blockSection)
	x.buf = le.AppendUint32(x.buf, magic)
	x.buf = le.AppendUint16(x.buf, 1)
	x.buf = le.AppendUint16(x.buf, 0)
	x.buf = le.AppendUint64(x.buf, math.MaxUint64) // length not known
	x.option(optShbUser, []byte(program))
	return x, x.end()
}

func (x *Writer) begin(typ uint32) {
	x.buf = le.AppendUint32(x.buf[:0], typ)
	x.buf = le.AppendUint32(x.buf, 0)
}

func (x *Writer) pad() {
	for len(x.buf)%4 != 0 {
		x.buf = append(x.buf, 0)
	}
}

func (x *Writer) option(code uint16, value []byte) {
	value = value[:min(len(value), math.MaxUint16)]
	x.buf = le.AppendUint16(x.buf, code)
	x.buf = le.AppendUint16(x.buf, uint16(len(value)))
	x.buf = append(x.buf, value...)
	x.pad()
}

// end closes the block and writes it in one piece.
func (x *Writer) end() error {
	x.option(optEnd, nil)
	n := uint32(len(x.buf) + 4)
	x.buf = le.AppendUint32(x.buf, n)
	le.PutUint32(x.buf[4:], n)
	if x.err == nil {
		_, x.err = x.w.Write(x.buf)
	}
	return x.err
}

func (x *Writer) iface(name string) uint32 {
	if id, ok := x.ifaces[name]; ok {
		return id
	}
	id := uint32(len(x.ifaces))
	x.ifaces[name] = id
	x.begin(blockInterface)
	x.buf = le.AppendUint16(x.buf, linkRaw)
	x.buf = le.AppendUint16(x.buf, 0)
	x.buf = le.AppendUint32(x.buf, x.snap)
	x.option(optIfName, []byte(name))
	x.option(optTSResol, []byte{9})
	x.end()
	return id
}

func (x *Writer) time(t time.Time) {
	ns := uint64(t.UnixNano())
	x.buf = le.AppendUint32(x.buf, uint32(ns>>32))
	x.buf = le.AppendUint32(x.buf, uint32(ns))
}

// Write adds a packet.
func (x *Writer) Write(p *Packet) error {
	id := x.iface(p.Iface)
	x.count[p.Iface]++
	data := p.Data
	if x.snap > 0 && len(data) > int(x.snap) {
		data = data[:x.snap]
	}
	x.begin(blockEnhanced)
	x.buf = le.AppendUint32(x.buf, id)
	x.time(p.Time)
	x.buf = le.AppendUint32(x.buf, uint32(len(data)))
	x.buf = le.AppendUint32(x.buf, uint32(max(p.Len, len(data))))
	x.buf = append(x.buf, data...)
	x.pad()
	if p.Comment != "" {
		x.option(optComment, []byte(p.Comment))
	}
	if p.Inbound || p.Outbound {
		flags := uint32(1)
		if p.Outbound {
			flags = 2
		}
		x.option(optEpbFlags, le.AppendUint32(nil, flags))
	}
	if p.Lost > 0 {
		x.option(optEpbDropped, le.AppendUint64(nil, p.Lost))
	}
	return x.end()
}

// Close writes what was captured and lost; lost counts for the first interface,
// because a lost packet's is not known.
func (x *Writer) Close(at time.Time, lost uint64) error {
	for name, id := range x.ifaces {
		x.begin(blockStats)
		x.buf = le.AppendUint32(x.buf, id)
		x.time(at)
		x.option(optIsbRecv, le.AppendUint64(nil, x.count[name]))
		if id == 0 {
			x.option(optIsbDrop, le.AppendUint64(nil, lost))
		}
		x.end()
	}
	return x.err
}

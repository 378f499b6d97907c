package router

import (
	"encoding/binary"
	"fmt"
	"io"
	"slices"
	"sync/atomic"
	"time"

	"sluice/packet"
)

// nflogQueue is how many packets may wait for a listener.
const nflogQueue = 1024

// nflogListener is somebody who reads a group's packets.
type nflogListener struct {
	group   uint16
	packets chan nflogPacket
	lost    atomic.Uint64
}

// nflogPacket is a packet that a rule sent to a group.
type nflogPacket struct {
	at     time.Time
	prefix string
	hook   string
	in     string
	out    string
	mark   uint32
	size   int // of the whole packet
	bytes  []byte
}

// nflog is what the NFLOG target calls on a worker.
func (w *worker) nflog(group uint16, prefix string, size int, p *packet.Packet) {
	ls := w.r.nflogs.Load()
	if ls == nil {
		return
	}
	for _, l := range *ls {
		if l.group != group {
			continue
		}
		b := p.Bytes()
		x := nflogPacket{at: w.r.wall(p.Now), prefix: prefix, hook: w.ctx[family(p)].Hook.String(), mark: p.Mark, size: len(b)}
		if size >= 0 && size < len(b) {
			b = b[:size]
		}
		x.bytes = append([]byte(nil), b...)
		if p.In != nil {
			x.in = p.In.Name
		}
		if p.Out != nil {
			x.out = p.Out.Name
		}
		select {
		case l.packets <- x:
		default:
			l.lost.Add(1)
		}
	}
}

// setNFLog adds or removes a listener.
func (r *Router) setNFLog(edit func([]*nflogListener) []*nflogListener) {
	r.queueMu.Lock()
	defer r.queueMu.Unlock()
	var ls []*nflogListener
	if old := r.nflogs.Load(); old != nil {
		ls = slices.Clone(*old)
	}
	ls = edit(ls)
	r.nflogs.Store(&ls)
}

// ServeNFLog writes the packets that rules send to a group (-j NFLOG) to out, as
// a pcapng file: raw IP, and for each packet a comment with the rule's prefix,
// the hook, the interfaces and the mark. It ends when done is closed, or with
// an error of out.
func (r *Router) ServeNFLog(group uint16, out io.Writer, done <-chan struct{}) error {
	l := &nflogListener{group: group, packets: make(chan nflogPacket, nflogQueue)}
	r.setNFLog(func(ls []*nflogListener) []*nflogListener { return append(ls, l) })
	defer r.setNFLog(func(ls []*nflogListener) []*nflogListener {
		return slices.DeleteFunc(ls, func(x *nflogListener) bool { return x == l })
	})
	if _, err := out.Write(nflogHeader(group)); err != nil {
		return err
	}
	var buf []byte
	for {
		select {
		case x := <-l.packets:
			buf = x.append(buf[:0])
			if n := l.lost.Swap(0); n > 0 {
				r.log.Warn("NFLOG: packets lost", "group", group, "packets", n)
			}
			if _, err := out.Write(buf); err != nil {
				return err
			}
		case <-done:
			return nil
		case <-r.stopping:
			return nil
		}
	}
}

// Block types and options of pcapng (draft-ietf-opsawg-pcapng).
const (
	blockSection   = 0x0a0d0d0a
	blockInterface = 1
	blockPacket    = 6
	optComment     = 1
	optName        = 2
	optTimeRes     = 9
	linkRaw        = 101
)

// appendBlock wraps a body, which is a multiple of four bytes.
func appendBlock(b []byte, typ uint32, body []byte) []byte {
	n := uint32(len(body) + 12)
	b = binary.LittleEndian.AppendUint32(b, typ)
	b = binary.LittleEndian.AppendUint32(b, n)
	b = append(b, body...)
	return binary.LittleEndian.AppendUint32(b, n)
}

func appendOption(b []byte, code uint16, value []byte) []byte {
	b = binary.LittleEndian.AppendUint16(b, code)
	b = binary.LittleEndian.AppendUint16(b, uint16(len(value)))
	return pad4(append(b, value...))
}

func pad4(b []byte) []byte {
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	return b
}

// nflogHeader is a section and its only interface, named after the group.
func nflogHeader(group uint16) []byte {
	section := binary.LittleEndian.AppendUint32(nil, 0x1a2b3c4d)
	section = binary.LittleEndian.AppendUint16(section, 1)
	section = binary.LittleEndian.AppendUint16(section, 0)
	section = binary.LittleEndian.AppendUint64(section, 1<<64-1)
	iface := binary.LittleEndian.AppendUint16(nil, linkRaw)
	iface = append(iface, 0, 0, 0, 0, 0, 0)
	iface = appendOption(iface, optName, fmt.Appendf(nil, "nflog:%d", group))
	iface = appendOption(iface, optTimeRes, []byte{9})
	iface = append(iface, 0, 0, 0, 0)
	return appendBlock(appendBlock(nil, blockSection, section), blockInterface, iface)
}

func (x *nflogPacket) append(b []byte) []byte {
	at := uint64(x.at.UnixNano())
	body := binary.LittleEndian.AppendUint32(nil, 0)
	body = binary.LittleEndian.AppendUint32(body, uint32(at>>32))
	body = binary.LittleEndian.AppendUint32(body, uint32(at))
	body = binary.LittleEndian.AppendUint32(body, uint32(len(x.bytes)))
	body = binary.LittleEndian.AppendUint32(body, uint32(x.size))
	body = pad4(append(body, x.bytes...))
	body = appendOption(body, optComment, fmt.Appendf(nil, "prefix=%q hook=%s in=%s out=%s mark=%#x", x.prefix, x.hook, x.in, x.out, x.mark))
	body = append(body, 0, 0, 0, 0)
	return appendBlock(b, blockPacket, body)
}

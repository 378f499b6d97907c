package netstack

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
)

// blockGuard stands between a pcapng file and pcapgo's reader, which trusts
// lengths and options: it passes on whole, checked blocks, leaves out what
// holds no frames, and gives interfaces a link type of one byte.
type blockGuard struct {
	r      io.Reader
	order  byteOrder
	block  []byte // the checked block
	out    []byte // what is left of it to read
	blocks int
	nIfs   int
}

type byteOrder interface {
	binary.ByteOrder
	binary.AppendByteOrder
}

const (
	ngSection   = 0x0a0d0d0a
	ngInterface = 1
	ngPacket    = 2
	ngSimple    = 3
	ngEnhanced  = 6
	ngMagic     = 0x1a2b3c4d

	maxBlock   = 1 << 20
	maxCapture = 1 << 18 // libpcap's own limit
)

func (g *blockGuard) Read(b []byte) (int, error) {
	for len(g.out) == 0 {
		if err := g.next(); err != nil {
			if err == io.EOF || errors.Is(err, io.ErrUnexpectedEOF) {
				return 0, err
			}
			return 0, fmt.Errorf("block %d: %w", g.blocks, err)
		}
	}
	n := copy(b, g.out)
	g.out = g.out[n:]
	return n, nil
}

// next reads one block; g.out stays empty if it is one to leave out.
func (g *blockGuard) next() error {
	g.blocks++
	var head [12]byte
	if _, err := io.ReadFull(g.r, head[:8]); err != nil {
		return err // io.EOF between two blocks is the end
	}
	have := 8
	if binary.LittleEndian.Uint32(head[:]) == ngSection {
		if err := readAll(g.r, head[8:12]); err != nil {
			return err
		}
		have = 12
		switch uint32(ngMagic) {
		case binary.LittleEndian.Uint32(head[8:]):
			g.order = binary.LittleEndian
		case binary.BigEndian.Uint32(head[8:]):
			g.order = binary.BigEndian
		default:
			return errors.New("not a section header: wrong byte order magic")
		}
		g.nIfs = 0
	} else if g.order == nil {
		return errors.New("no section header")
	}
	typ, n := g.order.Uint32(head[:]), g.order.Uint32(head[4:])
	if n < 12 || n%4 != 0 || n > maxBlock {
		return fmt.Errorf("length %d", n)
	}
	if int(n) < have {
		return fmt.Errorf("length %d", n)
	}
	if cap(g.block) < int(n) {
		g.block = make([]byte, n, 2*n)
	}
	g.block = g.block[:n]
	copy(g.block, head[:have])
	if err := readAll(g.r, g.block[have:]); err != nil {
		return err
	}
	if tail := g.order.Uint32(g.block[n-4:]); tail != n {
		return fmt.Errorf("length %d at its start, %d at its end", n, tail)
	}
	body := g.block[8 : n-4]
	switch typ {
	case ngSection:
		return g.section(body)
	case ngInterface:
		return g.iface(body)
	case ngPacket, ngEnhanced:
		return g.packet(typ, body)
	case ngSimple:
		if len(body) < 4 || g.nIfs == 0 {
			return errors.New("a packet without an interface")
		}
		// Its captured length is not written down: the block's own bounds it.
		if room := uint32(len(body) - 4); g.order.Uint32(body) > room {
			g.order.PutUint32(body, room)
		}
		g.out = g.block
	}
	return nil
}

// emit passes on a block of our own making.
func (g *blockGuard) emit(typ uint32, body ...uint32) {
	n := uint32(12 + 4*len(body))
	out := g.block[:0]
	for _, w := range append(append([]uint32{typ, n}, body...), n) {
		out = g.order.AppendUint32(out, w)
	}
	g.block, g.out = out, out
}

func (g *blockGuard) section(body []byte) error {
	if len(body) < 16 {
		return errors.New("short section header")
	}
	major, minor := g.order.Uint16(body[4:]), g.order.Uint16(body[6:])
	if major != 1 || minor != 0 && minor != 2 {
		return fmt.Errorf("pcapng version %d.%d", major, minor)
	}
	var version [4]byte
	g.order.PutUint16(version[:], 1)
	g.emit(ngSection, ngMagic, g.order.Uint32(version[:]), 0xffffffff, 0xffffffff)
	return nil
}

func (g *blockGuard) iface(body []byte) error {
	if len(body) < 8 {
		return errors.New("short interface description")
	}
	code, err := linkCode(uint32(g.order.Uint16(body)))
	if err != nil {
		return err
	}
	if g.nIfs++; g.nIfs > 1<<16 {
		return errors.New("too many interfaces")
	}
	res, offset := byte(6), uint64(0)
	for o := body[8:]; len(o) >= 4; {
		c, l := g.order.Uint16(o), int(g.order.Uint16(o[2:]))
		if c == 0 {
			break
		}
		if o = o[4:]; l > len(o) {
			return errors.New("an option is longer than its block")
		}
		switch {
		case c == 9 && l == 1:
			res = o[0]
		case c == 14 && l == 8:
			offset = g.order.Uint64(o)
		}
		o = o[min((l+3)&^3, len(o)):]
	}
	if res&0x80 != 0 && res&0x7f > 62 || res&0x80 == 0 && res > 18 {
		return fmt.Errorf("timestamp resolution %#x", res)
	}
	var w [16]byte
	g.order.PutUint16(w[0:], uint16(code))
	// Options: 9 is if_tsresol (1 byte), 14 is if_tsoffset (8 bytes).
	g.order.PutUint16(w[4:], 9)
	g.order.PutUint16(w[6:], 1)
	w[8] = res
	g.order.PutUint16(w[12:], 14)
	g.order.PutUint16(w[14:], 8)
	var off [8]byte
	g.order.PutUint64(off[:], offset)
	g.emit(ngInterface, g.order.Uint32(w[0:]), maxCapture, g.order.Uint32(w[4:]), g.order.Uint32(w[8:]),
		g.order.Uint32(w[12:]), g.order.Uint32(off[:]), g.order.Uint32(off[4:]), 0)
	return nil
}

func (g *blockGuard) packet(typ uint32, body []byte) error {
	if len(body) < 20 {
		return errors.New("short packet block")
	}
	id := g.order.Uint32(body)
	if typ == ngPacket {
		id = uint32(g.order.Uint16(body))
	}
	if int64(id) >= int64(g.nIfs) {
		return fmt.Errorf("a packet of interface %d, and there are %d", id, g.nIfs)
	}
	if n := g.order.Uint32(body[12:]); n > uint32(len(body)-20) || n > maxCapture {
		return fmt.Errorf("a captured length of %d in a block of %d", n, len(g.block))
	}
	g.out = g.block
	return nil
}

// readAll is io.ReadFull where an end is always too early.
func readAll(r io.Reader, b []byte) error {
	_, err := io.ReadFull(r, b)
	if err == io.EOF && len(b) > 0 {
		return io.ErrUnexpectedEOF
	}
	return err
}

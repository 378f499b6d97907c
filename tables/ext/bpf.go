package ext

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"

	"sluice/packet"
	"sluice/tables"
)

// bpfOp is an instruction of the classic BPF (McCanne and Jacobson, 1993).
type bpfOp struct {
	code   uint16
	jt, jf uint8
	k      uint32
}

// Fields of bpfOp.code.
const (
	bpfLD, bpfLDX, bpfST, bpfSTX, bpfALU, bpfJMP, bpfRET, bpfMISC = 0, 1, 2, 3, 4, 5, 6, 7

	bpfH, bpfB                                     = 0x08, 0x10 // sizes; 0 is a word
	bpfIMM, bpfABS, bpfIND, bpfMEM, bpfLEN, bpfMSH = 0x00, 0x20, 0x40, 0x60, 0x80, 0xa0
	bpfADD, bpfSUB, bpfMUL, bpfDIV, bpfOR, bpfAND  = 0x00, 0x10, 0x20, 0x30, 0x40, 0x50
	bpfLSH, bpfRSH, bpfNEG, bpfMOD, bpfXOR         = 0x60, 0x70, 0x80, 0x90, 0xa0
	bpfJA, bpfJEQ, bpfJGT, bpfJGE, bpfJSET         = 0x00, 0x10, 0x20, 0x30, 0x40
	bpfX, bpfA                                     = 0x08, 0x10
	bpfTAX, bpfTXA                                 = 0x00, 0x80
)

// Linux's offsets beyond the packet (linux/filter.h): what is known beside it,
// and the network and link-level header, which are one here.
const (
	bpfAnc   = 0xfffff000 // SKF_AD_OFF
	bpfNet   = 0xfff00000 // SKF_NET_OFF
	bpfLink  = 0xffe00000 // SKF_LL_OFF
	arpNone  = 0xfffe     // ARPHRD_NONE, the type of TUN devices
	etherIP4 = 0x0800
	etherIP6 = 0x86dd
)

const (
	ancProtocol = 0
	ancPktType  = 4
	ancIfindex  = 8
	ancMark     = 20
	ancQueue    = 24
	ancHatype   = 28
	ancCPU      = 36
	ancXOR      = 40
	ancVLAN     = 44
	ancVLANHas  = 48
	ancRandom   = 56
	ancVLANTPID = 60
)

func ancKnown(k uint32) bool {
	switch k - bpfAnc {
	case ancProtocol, ancPktType, ancIfindex, ancMark, ancQueue, ancHatype, ancCPU, ancXOR, ancVLAN, ancVLANHas, ancRandom, ancVLANTPID:
		return true
	}
	return false
}

// checkBPF makes the checks that the kernel makes of a program: after them it
// ends, and reads no memory that it did not write.
func checkBPF(prog []bpfOp) error {
	var reach [maxBPF + 1]uint16 // memory written on every way to an instruction
	for i := range reach {
		reach[i] = 0xffff
	}
	valid := uint16(0)
	for pc, o := range prog {
		bad := func(why string) error { return fmt.Errorf("bpf: instruction %d: %s", pc, why) }
		if !bpfAllowed(o.code) {
			return bad("unknown code " + fmt.Sprint(o.code))
		}
		left := len(prog) - pc - 1
		valid &= reach[pc]
		switch o.code & 7 {
		case bpfLD, bpfLDX:
			switch o.code & 0xe0 {
			case bpfMEM:
				if o.k >= 16 {
					return bad("there are 16 words of memory")
				}
				if valid>>o.k&1 == 0 {
					return bad("reads memory that was not written")
				}
			case bpfABS:
				if o.k >= bpfAnc && !ancKnown(o.k) {
					return bad("asks for what is not known here")
				}
			}
		case bpfST, bpfSTX:
			if o.k >= 16 {
				return bad("there are 16 words of memory")
			}
			valid |= 1 << o.k
		case bpfALU:
			if o.code&bpfX != 0 {
				break
			}
			switch op := o.code & 0xf0; {
			case (op == bpfDIV || op == bpfMOD) && o.k == 0:
				return bad("division by zero")
			case (op == bpfLSH || op == bpfRSH) && o.k >= 32:
				return bad("shifts too far")
			}
		case bpfJMP:
			if o.code&0xf0 == bpfJA {
				if o.k >= uint32(left) {
					return bad("jumps out of the program")
				}
				reach[pc+1+int(o.k)] &= valid
				valid = 0xffff
				break
			}
			if int(o.jt) >= left || int(o.jf) >= left {
				return bad("jumps out of the program")
			}
			reach[pc+1+int(o.jt)] &= valid
			reach[pc+1+int(o.jf)] &= valid
			valid = 0xffff
		}
	}
	if prog[len(prog)-1].code&7 != bpfRET {
		return errors.New("bpf: the program does not end with a return")
	}
	return nil
}

func bpfAllowed(code uint16) bool {
	if code > 0xff {
		return false
	}
	size, mode, src := code&0x18, code&0xe0, code&bpfX
	switch code & 7 {
	case bpfLD:
		switch mode {
		case bpfABS, bpfIND:
			return size != 0x18
		case bpfIMM, bpfMEM, bpfLEN:
			return size == 0
		}
	case bpfLDX:
		switch mode {
		case bpfIMM, bpfMEM, bpfLEN:
			return size == 0
		case bpfMSH:
			return size == bpfB
		}
	case bpfST, bpfSTX:
		return code&^7 == 0
	case bpfALU:
		return code&0xf0 <= bpfXOR && (code&0xf0 != bpfNEG || src == 0)
	case bpfJMP:
		return code&0xf0 <= bpfJSET && (code&0xf0 != bpfJA || src == 0)
	case bpfRET:
		return code&^7 == 0 || code&^7 == bpfA
	case bpfMISC:
		return code&^7 == bpfTAX || code&^7 == bpfTXA
	}
	return false
}

// runBPF runs a checked program; a read beyond the packet, or a division by
// zero, ends it with 0.
func runBPF(prog []bpfOp, c *tables.Context, p *packet.Packet) uint32 {
	var a, x uint32
	var mem [16]uint32
	b := p.Bytes()
	for pc := 0; pc < len(prog); pc++ {
		o := &prog[pc]
		src := o.k
		if o.code&bpfX != 0 {
			src = x
		}
		switch o.code & 7 {
		case bpfLD:
			switch o.code & 0xe0 {
			case bpfIMM:
				a = o.k
			case bpfMEM:
				a = mem[o.k&15]
			case bpfLEN:
				a = uint32(len(b))
			default:
				at := o.k
				if o.code&0xe0 == bpfIND {
					at += x
				} else if at >= bpfAnc {
					v, ok := ancillary(at-bpfAnc, a, x, c, p)
					if !ok {
						return 0
					}
					a = v
					continue
				}
				v, ok := bpfLoad(b, at, o.code&0x18)
				if !ok {
					return 0
				}
				a = v
			}
		case bpfLDX:
			switch o.code & 0xe0 {
			case bpfIMM:
				x = o.k
			case bpfMEM:
				x = mem[o.k&15]
			case bpfLEN:
				x = uint32(len(b))
			default:
				v, ok := bpfLoad(b, o.k, bpfB)
				if !ok {
					return 0
				}
				x = v & 15 * 4
			}
		case bpfST:
			mem[o.k&15] = a
		case bpfSTX:
			mem[o.k&15] = x
		case bpfALU:
			switch o.code & 0xf0 {
			case bpfADD:
				a += src
			case bpfSUB:
				a -= src
			case bpfMUL:
				a *= src
			case bpfDIV:
				if src == 0 {
					return 0
				}
				a /= src
			case bpfMOD:
				if src == 0 {
					return 0
				}
				a %= src
			case bpfAND:
				a &= src
			case bpfOR:
				a |= src
			case bpfXOR:
				a ^= src
			case bpfLSH:
				a <<= src & 31
			case bpfRSH:
				a >>= src & 31
			case bpfNEG:
				a = -a
			}
		case bpfJMP:
			yes := false
			switch o.code & 0xf0 {
			case bpfJA:
				pc += int(o.k)
				continue
			case bpfJEQ:
				yes = a == src
			case bpfJGT:
				yes = a > src
			case bpfJGE:
				yes = a >= src
			case bpfJSET:
				yes = a&src != 0
			}
			if yes {
				pc += int(o.jt)
			} else {
				pc += int(o.jf)
			}
		case bpfRET:
			if o.code&bpfA != 0 {
				return a
			}
			return o.k
		case bpfMISC:
			if o.code&bpfTXA != 0 {
				a = x
			} else {
				x = a
			}
		}
	}
	return 0
}

// bpfLoad reads a word, a half word or a byte, big-endian.
func bpfLoad(b []byte, at uint32, size uint16) (uint32, bool) {
	switch {
	case at < 1<<31:
	case at >= bpfNet:
		at -= bpfNet
	case at >= bpfLink:
		at -= bpfLink
	}
	n := uint32(4)
	switch size {
	case bpfH:
		n = 2
	case bpfB:
		n = 1
	}
	if uint64(at)+uint64(n) > uint64(len(b)) {
		return 0, false
	}
	switch b = b[at:]; size {
	case bpfH:
		return uint32(binary.BigEndian.Uint16(b)), true
	case bpfB:
		return uint32(b[0]), true
	}
	return binary.BigEndian.Uint32(b), true
}

// ancillary is what is known beside the packet's bytes.
func ancillary(what, a, x uint32, c *tables.Context, p *packet.Packet) (uint32, bool) {
	dev := p.In
	if p.Out != nil && (dev == nil || c.Hook >= 4) {
		dev = p.Out
	}
	switch what {
	case ancProtocol:
		if p.Family == packet.IPv6 {
			return etherIP6, true
		}
		return etherIP4, true
	case ancPktType:
		return uint32(p.PktType), true
	case ancIfindex:
		if dev == nil {
			return 0, false
		}
		return uint32(dev.Index), true
	case ancMark:
		return p.Mark, true
	case ancHatype:
		return arpNone, dev != nil
	case ancCPU:
		return uint32(c.Worker), true
	case ancXOR:
		return a ^ x, true
	case ancRandom:
		return rand.Uint32(), true
	}
	return 0, true // queue and VLAN: the packet has none
}

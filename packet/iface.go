package packet

// Iface is an interface as packets and rules see it. It is immutable but for
// what its comments say; two Ifaces of one router never share an Index.
type Iface struct {
	Index int
	Name  string
	Words [2]uint64 // the name, NUL-padded, little-endian words: for masked comparison
	MTU   int       // bytes
}

// NewIface makes an Iface. Names are at most 15 bytes (IFNAMSIZ-1).
func NewIface(index int, name string, mtu int) *Iface {
	w, _ := NameWords(name)
	return &Iface{Index: index, Name: name, Words: w, MTU: mtu}
}

// NameWords gives a name, or a pattern ending in '+', as two words and the mask
// under which an interface's Words must be equal to them.
func NameWords(pattern string) (words, mask [2]uint64) {
	n, m := len(pattern), len(pattern)+1 // the NUL takes part: "eth1" is not "eth10"
	if n > 0 && pattern[n-1] == '+' {
		n, m = n-1, n-1
	}
	for i := 0; i < 16; i++ {
		if i < n {
			words[i/8] |= uint64(pattern[i]) << (8 * (i % 8))
		}
		if i < m {
			mask[i/8] |= 0xff << (8 * (i % 8))
		}
	}
	return words, mask
}

// Match compares i (nil: no interface, which only the empty pattern and "+" match) with NameWords' result.
func (i *Iface) Match(words, mask *[2]uint64) bool {
	var w [2]uint64
	if i != nil {
		w = i.Words
	}
	return (w[0]^words[0])&mask[0]|(w[1]^words[1])&mask[1] == 0
}

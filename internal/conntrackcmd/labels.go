package conntrackcmd

import (
	"bufio"
	"os"
	"strconv"
	"strings"
)

// labelFile is where names are given to label bits, a number and a name a line.
const labelFile = "/etc/xtables/connlabel.conf"

type labelMap struct {
	byName map[string]uint8
	byBit  [128]string
}

// loadLabels reads labelFile; nil if it is not there.
func loadLabels(path string) *labelMap {
	f, err := os.Open(path)
	if err != nil {
		return nil
	}
	defer f.Close()
	m := &labelMap{byName: map[string]uint8{}}
	for sc := bufio.NewScanner(f); sc.Scan(); {
		w := strings.Fields(sc.Text())
		if len(w) < 2 || strings.HasPrefix(w[0], "#") {
			continue
		}
		n, err := strconv.ParseUint(w[0], 10, 8)
		if err != nil || n > 127 || m.byBit[n] != "" {
			continue
		}
		m.byBit[n] = w[1]
		m.byName[w[1]] = uint8(n)
	}
	return m
}

// names lists the names of the bits that are set; a bit without one has no name to show.
func (m *labelMap) names(l [16]byte) (out []string) {
	if m == nil {
		return nil
	}
	for i, n := range m.byBit {
		if l[i/8]>>(i%8)&1 != 0 && n != "" {
			out = append(out, n)
		}
	}
	return out
}

package wire

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
	"strings"
)

const tick = 0.01 // seconds: USER_HZ

// usage is processor time in seconds since the start.
type usage struct{ machine, router float64 }

// cpu reads what the machine and the path's router have used.
func (p *Path) cpu() usage {
	var u usage
	b, _ := os.ReadFile("/proc/stat")
	line, _, _ := strings.Cut(string(b), "\n")
	for i, f := range strings.Fields(line) {
		// user nice system idle iowait irq softirq
		if i >= 1 && i <= 7 && i != 4 && i != 5 {
			n, _ := strconv.ParseFloat(f, 64)
			u.machine += n * tick
		}
	}
	if p.pid == 0 {
		return u
	}
	b, _ = os.ReadFile(fmt.Sprintf("/proc/%d/stat", p.pid))
	if i := bytes.LastIndexByte(b, ')'); i > 0 {
		f := strings.Fields(string(b[i+1:]))
		for _, i := range []int{11, 12} { // utime, stime
			if i < len(f) {
				n, _ := strconv.ParseFloat(f[i], 64)
				u.router += n * tick
			}
		}
	}
	return u
}

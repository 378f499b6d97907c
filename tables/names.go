package tables

import (
	"bufio"
	"os"
	"strconv"
	"strings"
	"sync"
)

// protocols are the names that iptables itself knows, in its order; /etc/protocols adds to them.
var protocols = []struct {
	name string
	num  uint8
}{
	{"tcp", 6}, {"sctp", 132}, {"udp", 17}, {"udplite", 136}, {"icmp", 1}, {"icmpv6", 58}, {"ipv6-icmp", 58},
	{"esp", 50}, {"ah", 51}, {"ipv6-mh", 135}, {"mh", 135}, {"all", 0},
}

type etc struct {
	protoByName map[string]uint8
	protoByNum  map[uint8]string
	ports       map[string]uint16 // "http/tcp"
	portNames   map[string]string // "80/tcp"
}

var loadEtc = sync.OnceValue(func() *etc {
	e := &etc{map[string]uint8{}, map[uint8]string{}, map[string]uint16{}, map[string]string{}}
	lines("/etc/protocols", func(f []string) {
		if n, err := strconv.ParseUint(f[1], 10, 8); err == nil {
			if _, ok := e.protoByNum[uint8(n)]; !ok {
				e.protoByNum[uint8(n)] = f[0]
			}
			for i, name := range f {
				if _, ok := e.protoByName[name]; !ok && i != 1 {
					e.protoByName[name] = uint8(n)
				}
			}
		}
	})
	lines("/etc/services", func(f []string) {
		port, proto, _ := strings.Cut(f[1], "/")
		n, err := strconv.ParseUint(port, 10, 16)
		if err != nil {
			return
		}
		if _, ok := e.portNames[f[1]]; !ok {
			e.portNames[f[1]] = f[0]
		}
		for i, name := range f {
			if _, ok := e.ports[name+"/"+proto]; !ok && i != 1 {
				e.ports[name+"/"+proto] = uint16(n)
			}
		}
	})
	return e
})

// lines calls f with the fields of each line that has at least two.
func lines(path string, f func([]string)) {
	file, err := os.Open(path)
	if err != nil {
		return // a system without the file knows numbers only
	}
	defer file.Close()
	for sc := bufio.NewScanner(file); sc.Scan(); {
		s, _, _ := strings.Cut(sc.Text(), "#")
		if w := strings.Fields(s); len(w) >= 2 {
			f(w)
		}
	}
}

// ProtocolByName reads -p's argument, which is in lower case, or an option's of
// an extension, for which case matters.
func ProtocolByName(s string) (uint8, bool) {
	if n, rest, ok := Strtoul(s, 0, 255); ok && rest == "" {
		return uint8(n), true
	}
	for _, p := range protocols {
		if p.name == s {
			return p.num, true
		}
	}
	n, ok := loadEtc().protoByName[s]
	return n, ok
}

// ProtocolName is the name printed for a number; "" where the number is printed.
func ProtocolName(n uint8) string {
	if s := loadEtc().protoByNum[n]; s != "" && n != 0 {
		return s
	}
	for _, p := range protocols {
		if p.num == n {
			return p.name
		}
	}
	return ""
}

// ServicePort finds a port by its name in /etc/services. proto "" means any.
func ServicePort(name, proto string) (uint16, bool) {
	e := loadEtc()
	if proto != "" {
		n, ok := e.ports[name+"/"+proto]
		return n, ok
	}
	for _, p := range []string{"tcp", "udp", "sctp", "dccp"} {
		if n, ok := e.ports[name+"/"+p]; ok {
			return n, true
		}
	}
	return 0, false
}

// ServiceName is the name of a port in /etc/services; "" if it has none.
func ServiceName(port uint16, proto string) string {
	return loadEtc().portNames[strconv.Itoa(int(port))+"/"+proto]
}

// ParsePort reads a port number or service name.
func ParsePort(s, proto string) (uint16, error) {
	if n, rest, ok := Strtoul(s, 0, 65535); ok && rest == "" {
		return uint16(n), nil
	}
	if n, ok := ServicePort(s, proto); ok {
		return n, nil
	}
	return 0, Usagef("invalid port/service `%s' specified", s)
}

// Package iptables is the command line of iptables, ip6tables and their -save
// and -restore programs, acting on the tables of a running router, and the
// loader of rules that a configuration names.
//
// The reference is iptables 1.8.9. Where its nf_tables and legacy variants
// differ, this is the legacy one, whose name the version string has; tables are
// saved in the nf_tables variant's fixed order, and a table shows up in a save
// once it has been written to.
package iptables

import (
	"io"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"sluice/packet"
	"sluice/tables"
	"sluice/tables/ext"
)

// version is what -V prints after the program's name.
const version = "v1.8.9 (legacy)"

// Engines is what the programs act on. Make it with New; copies are the same Engines.
type Engines struct {
	V4, V6 *tables.Engine
	// Registry has the extensions; New sets it to all of them.
	Registry *tables.Registry
	// Resolver turns names into addresses and back; New sets it to the host's.
	Resolver Resolver
	// Now is the clock of the date lines in a save.
	Now func() time.Time

	used *[2][tables.NumTables]atomic.Bool // written to, by family (0: IPv4)
}

// New makes Engines of the two families' engines. One may be nil where it is
// not asked for.
func New(v4, v6 *tables.Engine) Engines {
	return Engines{
		V4: v4, V6: v6, Registry: ext.Registry, Resolver: hostResolver{}, Now: time.Now,
		used: new([2][tables.NumTables]atomic.Bool),
	}
}

func (en *Engines) engine(fam uint8) *tables.Engine {
	if fam == packet.IPv4 {
		return en.V4
	}
	return en.V6
}

func (en *Engines) markUsed(fam uint8, t tables.TableID) {
	if en.used != nil {
		en.used[fam>>1&1][t].Store(true)
	}
}

// isUsed reports whether a table has been written to, or is not as it was made.
func (en *Engines) isUsed(rs *tables.Ruleset, id tables.TableID) bool {
	if en.used != nil && en.used[rs.Family>>1&1][id].Load() {
		return true
	}
	for _, c := range rs.Table(id).Chains() {
		if !c.Builtin || c.Policy != tables.VerdictAccept || len(c.Rules()) > 0 {
			return true
		}
	}
	return false
}

// Programs are the names that Run knows.
var Programs = []string{
	"iptables", "ip6tables", "iptables-save", "ip6tables-save", "iptables-restore", "ip6tables-restore",
}

// Run is one call of a program: argv[0] is its name, perhaps with a path. It
// returns the exit status. Any number of goroutines may call it at once; what
// they change is serialised by the engines. Files that argv names are the
// caller's to open: see ClientArgs.
func Run(engines Engines, argv []string, stdin io.Reader, stdout, stderr io.Writer) int {
	if len(argv) == 0 {
		return tables.ExitParameter
	}
	x := &tool{
		Engines: engines, prog: filepath.Base(argv[0]), fam: packet.IPv4, line: -1,
		out: &sink{w: stdout}, err: &sink{w: stderr},
	}
	defer x.err.Flush()
	defer x.out.Flush()
	kind, isV6 := strings.CutPrefix(x.prog, "ip6tables")
	if isV6 {
		x.fam = packet.IPv6
	} else if kind, _ = strings.CutPrefix(x.prog, "iptables"); kind == x.prog {
		kind = "?"
	}
	x.eng = engines.engine(x.fam)
	if x.eng == nil {
		x.fail("%s: no tables of this family here\n", x.prog)
		return tables.ExitOther
	}
	switch kind {
	case "":
		return x.runCommand(argv[1:])
	case "-save":
		return x.runSave(argv)
	case "-restore":
		return x.runRestore(argv, stdin)
	}
	x.fail("%s: not a program that sluice knows\n", x.prog)
	return tables.ExitOther
}

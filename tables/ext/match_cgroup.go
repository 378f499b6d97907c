package ext

import (
	"bufio"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"

	"sluice/hooks"
	"sluice/packet"
	"sluice/tables"
)

// quoted is a text that is printed in quotes.
type quoted struct{}

func (quoted) Args() int { return 1 }

func (quoted) Parse(_ *tables.OptionContext, text []string, v *tables.Value) error {
	v.Str = text[0]
	return nil
}

func (quoted) Format(v *tables.Value) string { return tables.Quote(v.Str) }

var matchCgroup = &tables.Match{
	Name:     "cgroup",
	Families: tables.V4V6,
	Doc:      "Matches packets of the router's own sockets by the control group of the process they belong to, which is the router's.",
	Options: []tables.Option{
		{Name: "path", Type: quoted{}, Negatable: true, Arg: "path", Doc: "a group below the root of cgroup2, and all below it"},
		{Name: "cgroup", Type: tables.U32, Negatable: true, Arg: "classid", Doc: "class of net_cls; the router's is 0"},
	},
	Hooks: hooks.At(hooks.Input, hooks.Output, hooks.Postrouting),
	List: func(a *tables.Args, _ bool) string {
		var s string
		if v := a.Get("path"); v.Set {
			s += " cgroup" + notOf(v) + " " + v.Str
		}
		if v := a.Get("cgroup"); v.Set {
			s += " cgroup" + notOf(v) + " " + tables.U32.Format(v)
		}
		return s
	},
	Check: func(a *tables.Args, _ *tables.Place) error {
		switch {
		case a.Count() != 1:
			return errors.New("cgroup needs one of --path and --cgroup")
		case a.Has("path"):
			_, err := inCgroup(a.Str("path"))
			return err
		}
		return nil
	},
	Depends: tables.DependsOwner,
	Compile: func(a *tables.Args, _ *tables.Env) (tables.Pred, error) {
		path, class := a.Get("path"), a.Get("cgroup")
		yes := class.Set && (class.Lo == 0) != class.Not
		if path.Set {
			in, err := inCgroup(path.Str)
			if err != nil {
				return nil, err
			}
			yes = in != path.Not
		}
		return func(_ *tables.Context, p *packet.Packet) bool {
			return yes && p.Flags&(packet.HasOwner|packet.SystemSocket) != 0
		}, nil
	},
}

// cgroup2 is where the hierarchy is mounted ("": nowhere), and the router's own group in it.
var cgroup2 = sync.OnceValues(func() (mount, own string) {
	each := func(file string, f func(line string)) {
		fd, err := os.Open(file)
		if err != nil {
			return
		}
		defer fd.Close()
		for sc := bufio.NewScanner(fd); sc.Scan(); {
			f(sc.Text())
		}
	}
	each("/proc/self/mountinfo", func(line string) {
		fields, kind, _ := strings.Cut(line, " - ")
		if w := strings.Fields(fields); mount == "" && len(w) > 4 && strings.HasPrefix(kind, "cgroup2 ") {
			mount = w[4]
		}
	})
	each("/proc/self/cgroup", func(line string) {
		if p, ok := strings.CutPrefix(line, "0::"); ok {
			own = p
		}
	})
	return mount, own
})

// inCgroup says whether the router is in a group or below it. A group that does
// not exist is an error.
func inCgroup(path string) (bool, error) {
	path = filepath.Clean("/" + path)
	if path == "/" {
		return true, nil
	}
	mount, own := cgroup2()
	if st, err := os.Stat(filepath.Join(mount, path)); mount == "" || err != nil || !st.IsDir() {
		return false, errors.New("cgroup: there is no group " + path)
	}
	return own == path || strings.HasPrefix(own, path+"/"), nil
}

// Package ruletest tests rules like code: cases in TOML say which packets go
// into a configuration and what is to become of them. Nothing leaves the process.
package ruletest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/BurntSushi/toml"

	"sluice/internal/config"
	"sluice/internal/play"
	"sluice/router"
	"sluice/tables"
)

// file is a test file.
type file struct {
	Config string     `toml:"config"` // of cases that name none; a path from the test file's folder
	Inline string     `toml:"inline"` // or the configuration itself
	In     string     `toml:"in"`     // interface of packets that name none
	Cases  []caseSpec `toml:"case"`
}

type caseSpec struct {
	Name    string       `toml:"name"`
	Config  string       `toml:"config"`
	Inline  string       `toml:"inline"`
	In      string       `toml:"in"`
	Packets []packetSpec `toml:"packets"`
}

// packetSpec is a packet and what is expected of it.
type packetSpec struct {
	Send string `toml:"send"` // as package play reads it
	Pcap string `toml:"pcap"` // or a capture, each packet of which is to meet the expectations
	In   string `toml:"in"`

	Forwarded *string  `toml:"forwarded"` // out by this interface; "": by any
	Delivered *bool    `toml:"delivered"`
	Dropped   *string  `toml:"dropped"`  // for this reason; "": for any
	Rejected  *string  `toml:"rejected"` // dropped and answered: with a REJECT type or tcp-reset; "": with anything
	Held      *bool    `toml:"held"`
	As        string   `toml:"as"`     // how it leaves: a description's words, each of which must fit
	Answer    string   `toml:"answer"` // what the router sends because of it, likewise
	State     string   `toml:"state"`  // conntrack's
	Mark      *uint32  `toml:"mark"`   // when it ends
	ConnMark  *uint32  `toml:"connmark"`
	Rule      string   `toml:"rule"`    // that decides: part of its text, "table CHAIN number", or file:line
	Matched   []string `toml:"matched"` // rules that match, written likewise
	Unmatched []string `toml:"unmatched"`
}

// Result is one case's.
type Result struct {
	File, Name string
	Pos        router.Position
	Failures   []Failure // none: passed
	Time       time.Duration
	Packets    int
}

// Failure is an expectation that was not met.
type Failure struct {
	Pos   router.Position
	Item  string // the packet
	Text  string
	Trace []*router.Trace
}

// Run is the result of test files.
type Run struct {
	Results []Result
	rules   map[string]*covered
}

type covered struct {
	ref router.RuleRef
	fam string
	met bool
}

// Failed counts cases that failed.
func (r *Run) Failed() (n int) {
	for i := range r.Results {
		if len(r.Results[i].Failures) > 0 {
			n++
		}
	}
	return n
}

// File runs the cases of a file. An error means that the file cannot be used; it
// begins with the place.
func (r *Run) File(path string, only func(name string) bool) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	var f file
	md, err := toml.NewDecoder(bytes.NewReader(text)).Decode(&f)
	var pe toml.ParseError
	if errors.As(err, &pe) {
		return fmt.Errorf("%s:%d:%d: %s", path, max(pe.Position.Line, 1), max(pe.Position.Col, 1), cmp.Or(pe.Message, pe.Error()))
	} else if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	places := config.NewPlaces(path, text)
	if un := md.Undecoded(); len(un) > 0 {
		return fmt.Errorf("%s: unknown key %s", keyPlace(text, path, un[0]), un[0])
	}
	if len(f.Cases) == 0 {
		return fmt.Errorf("%s: no [[case]] in it", path)
	}
	if r.rules == nil {
		r.rules = map[string]*covered{}
	}
	configs := map[string]*router.Config{}
	for i := range f.Cases {
		c := &f.Cases[i]
		at := []string{"case", strconv.Itoa(i)}
		name := cmp.Or(c.Name, fmt.Sprintf("case %d", i+1))
		if len(c.Packets) == 0 {
			return fmt.Errorf("%s: %s: no packets", places.Key(at...), name)
		}
		for k := range c.Packets {
			if err := c.Packets[k].check(); err != nil {
				return fmt.Errorf("%s: %s: packet %d: %w", places.Key(append(at, "packets", strconv.Itoa(k))...), name, k+1, err)
			}
		}
		cfg, err := f.config(c, filepath.Dir(path), path, configs)
		if err != nil {
			return fmt.Errorf("%s: %s: %w", places.Key(at...), name, err)
		}
		if only != nil && !only(name) {
			continue
		}
		start := time.Now()
		res := Result{File: path, Name: name, Pos: places.Key(at...)}
		if err := r.play(&res, cfg, c, cmp.Or(c.In, f.In), filepath.Dir(path), func(k int) router.Position {
			return places.Key(append(slices.Clone(at), "packets", strconv.Itoa(k))...)
		}); err != nil {
			return err
		}
		res.Time = time.Since(start)
		r.Results = append(r.Results, res)
	}
	return nil
}

// keyPlace finds the line of an unknown key: the first line with its name after
// the header of its table.
func keyPlace(text []byte, path string, key toml.Key) string {
	name := key[len(key)-1]
	for i, line := range strings.Split(string(text), "\n") {
		if at := strings.Index(line, name); at >= 0 && strings.HasPrefix(strings.TrimLeft(line[at+len(name):], "\" \t"), "=") {
			return fmt.Sprintf("%s:%d:%d", path, i+1, at+1)
		}
	}
	return path
}

func (f *file) config(c *caseSpec, dir, path string, have map[string]*router.Config) (*router.Config, error) {
	name, inline := c.Config, c.Inline
	if name == "" && inline == "" {
		name, inline = f.Config, f.Inline
	}
	if (name == "") == (inline == "") {
		return nil, errors.New("want the configuration: config = \"FILE\", or its text as inline, in the case or above all cases")
	}
	key := name + "\x00" + inline
	if cfg := have[key]; cfg != nil {
		return cfg, nil
	}
	var cfg *router.Config
	var err error
	if name != "" {
		if !filepath.IsAbs(name) {
			name = filepath.Join(dir, name)
		}
		cfg, err = config.Load(name)
	} else {
		cfg, _, err = config.Parse(path+" (inline)", []byte(inline))
	}
	if err == nil {
		have[key] = cfg
	}
	return cfg, err
}

// check says what is wrong with a packet's description before anything runs.
func (p *packetSpec) check() error {
	n := 0
	for _, set := range []bool{p.Forwarded != nil, p.Delivered != nil, p.Dropped != nil, p.Rejected != nil, p.Held != nil} {
		if set {
			n++
		}
	}
	switch {
	case (p.Send == "") == (p.Pcap == ""):
		return errors.New("want send = \"PACKET\" or pcap = \"FILE\"")
	case n > 1:
		return errors.New("one of forwarded, delivered, dropped, rejected, held")
	case p.Delivered != nil && !*p.Delivered, p.Held != nil && !*p.Held:
		return errors.New("delivered and held are true or left out; say what else is to happen")
	}
	if p.Rejected != nil && *p.Rejected != "" && rejectTypes[*p.Rejected] == nil {
		return fmt.Errorf("rejected = %q: want tcp-reset or one of REJECT's types, such as icmp-port-unreachable", *p.Rejected)
	}
	return nil
}

func (r *Run) play(res *Result, cfg *router.Config, c *caseSpec, in, dir string, place func(int) router.Position) error {
	sim, err := router.NewSim(cfg, false)
	if err != nil {
		return fmt.Errorf("%s: %w", res.Pos, err)
	}
	defer sim.Close()
	p := play.New(sim)
	for k := range c.Packets {
		x := &c.Packets[k]
		p.In = cmp.Or(x.In, in)
		judge := func(item string, ts []*router.Trace) {
			res.Packets++
			for _, t := range ts {
				r.cover(t)
			}
			if bad := x.judge(ts); len(bad) > 0 {
				res.Failures = append(res.Failures, Failure{Pos: place(k), Item: item, Text: strings.Join(bad, "; "), Trace: ts})
			}
		}
		if x.Pcap != "" {
			path := x.Pcap
			if !filepath.IsAbs(path) {
				path = filepath.Join(dir, path)
			}
			n := 0
			err = p.Capture(path, p.In, func(ts []*router.Trace) {
				n++
				judge(fmt.Sprintf("%s, packet %d", x.Pcap, n), ts)
			})
		} else {
			var ts []*router.Trace
			if ts, err = p.Play(x.Send); err == nil {
				judge(x.Send, ts)
			} else if len(res.Failures) > 0 {
				err = nil // a conversation that went wrong before cannot go on
				break
			}
		}
		if err != nil {
			return fmt.Errorf("%s: %s: %w", place(k), res.Name, err)
		}
	}
	r.rest(sim.Router())
	return nil
}

func coverKey(ref *router.RuleRef, fam string) string {
	return fam + "\x00" + ref.File + ":" + strconv.Itoa(ref.Line) + "\x00" + ref.Table + "\x00" + ref.Text
}

func (r *Run) cover(t *router.Trace) {
	fam := "ipv" + strconv.Itoa(int(t.Family))
	for i := range t.Steps {
		if s := &t.Steps[i]; s.Kind == router.StepRule && s.Matched {
			k := coverKey(s.Rule, fam)
			if r.rules[k] == nil {
				r.rules[k] = &covered{ref: *s.Rule, fam: fam}
			}
			r.rules[k].met = true
		}
	}
}

// rest notes the rules that there are.
func (r *Run) rest(x *router.Router) {
	for _, fam := range []uint8{4, 6} {
		rs := x.Engine(fam).Ruleset()
		name := "ipv" + strconv.Itoa(int(fam))
		for id := range tables.NumTables {
			for _, ch := range rs.Table(id).Chains() {
				for i, rule := range ch.Rules() {
					ref := router.RuleRef{Table: id.String(), Chain: ch.Name, Num: i + 1, Text: "-A " + ch.Name + rule.Save(), File: rule.Source.File, Line: rule.Source.Line}
					if k := coverKey(&ref, name); r.rules[k] == nil {
						r.rules[k] = &covered{ref: ref, fam: name}
					}
				}
			}
		}
	}
}

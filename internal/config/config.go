package config

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"unicode/utf8"

	"github.com/BurntSushi/toml"

	"sluice/internal/iptables"
	"sluice/router"
)

// Load reads and checks the file at path. The error is a Problems if the file
// could be read.
func Load(path string) (*router.Config, error) {
	cfg, _, err := Read(path)
	return cfg, err
}

// Read is Load, with the warnings: what is accepted but will not do what its
// author may think.
func Read(path string) (cfg *router.Config, warnings Problems, err error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, nil, err
	}
	return Parse(path, text)
}

// Parse is Read of a text; name is its file's name, and relative paths in it
// count from that file's folder.
func Parse(name string, text []byte) (cfg *router.Config, warnings Problems, err error) {
	return parse(name, text, nil)
}

func parse(name string, text []byte, resolver iptables.Resolver) (cfg *router.Config, warnings Problems, err error) {
	doc, problem := document(name, text)
	if problem != nil {
		return nil, nil, Problems{*problem}
	}
	d := &decoder{report: &report{}, ix: newIndex(name, text), dir: filepath.Dir(name)}
	cfg = &router.Config{File: name}
	d.value(node{val: doc}, reflect.ValueOf(cfg).Elem())
	c := &checker{decoder: d, cfg: cfg, resolver: resolver}
	c.check()
	warnings = sorted(d.warns, name)
	if len(d.errs) > 0 {
		return nil, warnings, sorted(d.errs, name)
	}
	return cfg, warnings, nil
}

// document lets the TOML library decode text. Its errors have a place; the
// first ends the document.
func document(name string, text []byte) (map[string]any, *Problem) {
	if at := tooDeep(text); at >= 0 {
		line := bytes.Count(text[:at], []byte("\n"))
		col := at - bytes.LastIndexByte(text[:at], '\n')
		return nil, &Problem{router.Position{File: name, Line: line + 1, Column: col}, fmt.Sprintf("arrays and tables in each other, more than %d deep", maxDepth)}
	}
	doc := map[string]any{}
	_, err := toml.NewDecoder(bytes.NewReader(text)).Decode(&doc)
	if err == nil {
		return doc, nil
	}
	p := &Problem{router.Position{File: name}, err.Error()}
	var pe toml.ParseError
	if errors.As(err, &pe) {
		p.Text = pe.Message
		if p.Text == "" {
			p.Text = pe.Error()
		}
		p.Pos.Line, p.Pos.Column = max(pe.Position.Line, 1), max(pe.Position.Col, 1)
	} else if !utf8.Valid(text) {
		p.Text = "not UTF-8 text"
	}
	return nil, p
}

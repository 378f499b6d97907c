// Package bench holds what measures sluice. The parts:
//
//   - memory: the packet path without devices, `sluice bench`;
//   - wire: sluice and its peers end to end, in network namespaces;
//   - report: what was measured, as tables, JSON and HTML;
//   - harness: the program behind `make bench`;
//   - peers: programs to compare with that need modules of their own.
package bench

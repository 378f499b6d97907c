// Package router puts the rooms together: links, hooks, tables, conntrack, NAT,
// routes and the local stack. A packet's way reads from top to bottom in path.go;
// the stages of the hooks are the table in order.go.
//
// A program can have a router of its own: New makes one of a Config, Run moves
// its packets, Dial and Listen are sockets behind its rules, Command changes
// those, and an interface of type TypeUplink reaches the host's network without
// any privilege. See the examples.
package router

// Package router puts the rooms together: links, hooks, tables, conntrack, NAT,
// routes and the local stack. A packet's way reads from top to bottom in path.go;
// the stages of the hooks are the table in order.go.
package router

// Package wire measures routers end to end: for each path it makes a client, a
// server and what stands between them (Linux's own routing, copy loops between
// two TUN devices, gVisor's stack, sluice), and sends real traffic through. All
// paths exist at once and are idle but for the one that is measured, so rounds
// can take them in turn and ratios can be made of pairs.
//
// It needs root, and everything happens in network namespaces of its own.
package wire

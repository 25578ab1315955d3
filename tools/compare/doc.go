// Command compare measures Caprock and etcd side by side on this machine, three nodes each on loopback, with fresh data
// directories, the same value size, key space and numbers of clients, and every acknowledgement durable on a majority. Both clusters
// run all the time; each row of the table measures one after the other, through its own Go client or over HTTP and JSON, so that
// what the machine does meanwhile happens to both.
//
// It is a module of its own, so that etcd's client is no dependency of Caprock.
package main

// SPDX-License-Identifier: Apache-2.0

// Package maptable is the form in which a node shows an eBPF map to people: columns that say what they hold, and
// rows. It is what `cilium-agent inspect` writes and the plugin reads. Since each column says its kind, a plugin
// prints and fills in names for a map that is newer than itself.
package maptable

import (
	"encoding/json"
	"errors"
	"fmt"
)

// Kind says what a column holds and so which names can be filled in.
type Kind string

const (
	// Address is an IP address; "" for none.
	Address Kind = "address"
	// Prefix is a CIDR.
	Prefix Kind = "prefix"
	// AddrPort is address:port, IPv6 in brackets.
	AddrPort Kind = "addrport"
	// Identity is the number of a CiliumIdentity or a reserved one.
	Identity Kind = "identity"
	// Endpoint is an endpoint's id on the node; 0 is none or the host.
	Endpoint Kind = "endpoint"
	// Interface is an interface's name, or its number where it is gone.
	Interface Kind = "interface"
	// Number is a count.
	Number Kind = "number"
	// Bytes is an amount of memory or traffic.
	Bytes Kind = "bytes"
	// Text is anything else.
	Text Kind = "text"
)

// Column is one field of a map's key or value.
type Column struct {
	Name string `json:"name"`
	Kind Kind   `json:"kind"`
}

// Table is what a map holds.
type Table struct {
	// Map is the name without the layout.
	Map    string `json:"map"`
	Layout int    `json:"layout"`
	// Columns of each row, keys first.
	Columns []Column `json:"columns"`
	// Rows hold a string, a json.Number or a bool for each column.
	Rows [][]any `json:"rows"`
	// Remark says what is not the whole truth here, such as a table that changed faster than it could be read.
	Remark string `json:"remark,omitempty"`
}

// Info is one pinned map.
type Info struct {
	Name   string `json:"name"`
	Layout int    `json:"layout"`
	Type   string `json:"type"`
	// KeySize and ValueSize in bytes.
	KeySize   uint32 `json:"keySize"`
	ValueSize uint32 `json:"valueSize"`
	// Entries in use; -1 where that means nothing.
	Entries    int64 `json:"entries"`
	MaxEntries int64 `json:"maxEntries"`
	// Bytes of kernel memory, as the kernel accounts it.
	Bytes int64 `json:"bytes"`
	// Error says why the map could not be read.
	Error string `json:"error,omitempty"`
}

// ErrShape means that a table's rows do not fit its columns.
var ErrShape = errors.New("a row has another number of fields than there are columns")

// Index gives the place of a column, -1 if there is none.
func (t *Table) Index(name string) int {
	for i, c := range t.Columns {
		if c.Name == name {
			return i
		}
	}
	return -1
}

// Check returns ErrShape for a table that cannot be printed.
func (t *Table) Check() error {
	for i, row := range t.Rows {
		if len(row) != len(t.Columns) {
			return fmt.Errorf("map %s row %d: %w", t.Map, i, ErrShape)
		}
	}
	return nil
}

// Objects gives the rows as objects keyed by column, for machines.
func (t *Table) Objects() []map[string]any {
	all := make([]map[string]any, 0, len(t.Rows))
	for _, row := range t.Rows {
		o := make(map[string]any, len(row))
		for i, c := range t.Columns {
			o[c.Name] = row[i]
		}
		all = append(all, o)
	}
	return all
}

// FieldText is a field as it is printed.
func FieldText(field any) string {
	switch v := field.(type) {
	case nil:
		return ""
	case string:
		return v
	case json.Number:
		return v.String()
	default:
		return fmt.Sprint(v)
	}
}

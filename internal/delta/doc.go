// SPDX-License-Identifier: Apache-2.0

// Package delta brings a table to what is wanted with the fewest writes.
//
//	   wanted            actual
//	+-----------+-------------------+
//	|   put     | same |   delete   |
//	+-----------+-------------------+
//
// A Table reads its store once, remembers what it wrote, and reads again only
// after a write went wrong. Tables that refer to one another are changed
// together with Apply: what is referred to is put first and deleted last.
package delta

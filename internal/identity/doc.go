// SPDX-License-Identifier: Apache-2.0

// Package identity turns who a pod is into a number. A label set is made from the pod, its namespace and its service
// account; labels that users set on pods can never take the place of what the namespace says, nor enter the reserved
// source. The number is a keyed hash of the set, so that agents that never spoke to each other ask for the same one.
package identity

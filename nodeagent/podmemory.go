// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"reflect"
	"sync"

	"github.com/kube-cilium/kube-cilium/nodeagent/endpoint"
)

const lastPodsFile = "last-pods.json"

// podMemory keeps on disk who this node's pods were, by UID. A pod whose sandbox is made anew while the API server is
// away, under an agent that has started meanwhile, is then still who it was.
type podMemory struct {
	stateDir, bootID string

	mu    sync.Mutex
	known map[string]endpoint.Who
}

// lastPods is the file.
type lastPods struct {
	BootID string                  `json:"bootID"`
	Pods   map[string]endpoint.Who `json:"pods"`
}

// load reads what was kept in this boot; a file that is missing or damaged is an empty memory.
func (m *podMemory) load() map[string]endpoint.Who {
	var last lastPods
	data, err := os.ReadFile(filepath.Join(m.stateDir, lastPodsFile))
	if err != nil || json.Unmarshal(data, &last) != nil || last.BootID != m.bootID {
		return nil
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.known = last.Pods
	return last.Pods
}

func (m *podMemory) recall(uid string, otherwise endpoint.Who) endpoint.Who {
	m.mu.Lock()
	defer m.mu.Unlock()
	if who, ok := m.known[uid]; ok && uid != "" {
		return who
	}
	return otherwise
}

// keep replaces the whole memory.
func (m *podMemory) keep(known map[string]endpoint.Who) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	if reflect.DeepEqual(m.known, known) {
		return nil
	}
	data, err := json.Marshal(lastPods{BootID: m.bootID, Pods: known})
	if err != nil {
		return fmt.Errorf("last pods: %w", err)
	}
	path := filepath.Join(m.stateDir, lastPodsFile)
	if err := os.WriteFile(path+".new", data, 0o600); err != nil { // no sync: a power cut ends the boot, and with it the memory
		return fmt.Errorf("last pods: %w", err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		return fmt.Errorf("last pods: %w", err)
	}
	m.known = known
	return nil
}

package main

import (
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"github.com/stretchr/testify/require"
	"go.yaml.in/yaml/v3"

	"github.com/caprockdb/caprock/config"
)

// composeFile is as much of docker-compose.yml as these tests look at.
type composeFile struct {
	Services map[string]composeService `yaml:"services"`
	Volumes  map[string]any            `yaml:"volumes"`
}

type composeService struct {
	Build struct {
		Context    string `yaml:"context"`
		Dockerfile string `yaml:"dockerfile"`
	} `yaml:"build"`
	Command     []string          `yaml:"command"`
	Environment map[string]string `yaml:"environment"`
	Ports       []string          `yaml:"ports"`
	Volumes     []string          `yaml:"volumes"`
	Healthcheck struct {
		Test []string `yaml:"test"`
	} `yaml:"healthcheck"`
}

func readCompose(t *testing.T) composeFile {
	t.Helper()
	raw, err := os.ReadFile("../../docker-compose.yml")
	require.NoError(t, err)
	var file composeFile
	require.NoError(t, yaml.Unmarshal(raw, &file))
	return file
}

// Each node's environment is what `caprock start` reads in the container, so it is read here by the same code.
func TestComposeRunsFiveNodesThatFormOneCluster(t *testing.T) {
	file := readCompose(t)
	names := []string{"n1", "n2", "n3", "n4", "n5"}
	require.Len(t, file.Services, len(names)+1)
	var first config.Cluster
	for i, name := range names {
		service, ok := file.Services[name]
		require.True(t, ok, name)
		require.Equal(t, []string{"start"}, service.Command)
		environ := []string{"CAPROCK_DATA_DIR=/data"} // set by the image
		for key, value := range service.Environment {
			environ = append(environ, key+"="+value)
		}
		flags := pflag.NewFlagSet("start", pflag.ContinueOnError)
		config.AddFlags(flags)
		c, err := config.Load(flags, environ)
		require.NoError(t, err, name)
		require.Equal(t, name, c.Node.Name)
		require.Equal(t, name+":9001", c.Listen.Advertise(c.Listen.GRPC))
		require.Equal(t, names, c.Cluster.InitialMembers)
		if i == 0 {
			first = c.Cluster
		}
		require.Equal(t, first, c.Cluster, "what the cluster is made of is the same on every node")
		require.Contains(t, c.Cluster.Join, name+":7001")
		require.Equal(t, []string{name + ":/data"}, service.Volumes, "each node has its own volume")
		require.Contains(t, file.Volumes, name)
	}
}

func TestComposePublishesEachPortOnceAndOnlyOnLoopback(t *testing.T) {
	seen := map[string]string{}
	for name, service := range readCompose(t).Services {
		require.NotEmpty(t, service.Ports, name)
		for _, p := range service.Ports {
			host, container, ok := strings.Cut(strings.TrimPrefix(p, "127.0.0.1:"), ":")
			require.True(t, ok && strings.HasPrefix(p, "127.0.0.1:"), "%s publishes %s", name, p)
			require.NotEmpty(t, container)
			require.NotContains(t, seen, host, "%s and %s publish %s", name, seen[host], host)
			seen[host] = name
		}
	}
}

// The commands in the file are commands of this binary, flags included.
func TestComposeRunsCommandsThatExist(t *testing.T) {
	for name, service := range readCompose(t).Services {
		check := service.Healthcheck.Test
		require.Greater(t, len(check), 2, "%s has a health check", name)
		require.Equal(t, []string{"CMD", "/caprock"}, check[:2])
		for _, line := range [][]string{service.Command, check[2:]} {
			var cmd *cobra.Command
			cmd, rest, err := newRootCommand(&app{}).Find(line)
			require.NoError(t, err, "%s: %v", name, line)
			require.Equal(t, line[0], cmd.Name())
			require.NoError(t, cmd.ParseFlags(rest), "%s: %v", name, line)
		}
	}
	gateway := readCompose(t).Services["gateway"]
	nodes := gateway.Command[slices.Index(gateway.Command, "--nodes")+1]
	require.Equal(t, "n1:8081,n2:8081,n3:8081,n4:8081,n5:8081", nodes)
}

func TestImageIsStaticPinnedAndNotRoot(t *testing.T) {
	for _, service := range readCompose(t).Services {
		require.Equal(t, "deploy/docker/Dockerfile", service.Build.Dockerfile)
	}
	raw, err := os.ReadFile("../../deploy/docker/Dockerfile")
	require.NoError(t, err)
	text := string(raw)
	require.Contains(t, text, "CGO_ENABLED=0")
	require.Regexp(t, `(?m)^USER [1-9][0-9]*:[1-9][0-9]*$`, text)
	for _, from := range regexp.MustCompile(`(?m)^FROM (\S+)`).FindAllStringSubmatch(text, -1) {
		require.Regexp(t, `^(scratch|\S+:\d+\.\d+\.\d+\S*)$`, from[1], "a base image is pinned to a release")
	}
	goVersion := regexp.MustCompile(`(?m)^go (\d+\.\d+)`)
	mod, err := os.ReadFile("../../go.mod")
	require.NoError(t, err)
	require.Contains(t, text, "FROM golang:"+goVersion.FindStringSubmatch(string(mod))[1], "the image builds with the module's Go")
}

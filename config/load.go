package config

import (
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/knadh/koanf/parsers/yaml"
	"github.com/knadh/koanf/providers/env/v2"
	"github.com/knadh/koanf/providers/file"
	"github.com/knadh/koanf/providers/posflag"
	"github.com/knadh/koanf/v2"
	"github.com/spf13/pflag"

	"github.com/caprockdb/caprock/pkg/kv"
)

// EnvPrefix starts the name of every environment variable that is a setting.
const EnvPrefix = "CAPROCK_"

// EnvEndpoints is read by the commands that talk to a running cluster. It may stand in the environment of `caprock
// start` too, where it means nothing.
const EnvEndpoints = EnvPrefix + "ENDPOINTS"

// delim separates the parts of nested keys. Settings are flat, so a key that contains it is not known.
const delim = "."

// Load builds the configuration from the parsed flags (declared by AddFlags), the environment (os.Environ's form) and
// the file that either of them names, and validates it.
func Load(flags *pflag.FlagSet, environ []string) (Config, error) {
	merged := koanf.New(delim)
	if path := configFile(flags, environ); path != "" {
		layer, err := loadFile(path)
		if err != nil {
			return Config{}, err
		}
		if err := merged.Merge(layer); err != nil {
			return Config{}, fmt.Errorf("%s: %w", path, err)
		}
	}
	layer, err := loadEnv(environ)
	if err != nil {
		return Config{}, err
	}
	if err := merged.Merge(layer); err != nil {
		return Config{}, fmt.Errorf("environment: %w", err)
	}
	if err := merged.Load(posflag.ProviderWithFlag(flags, delim, nil, flagSetting), nil); err != nil {
		return Config{}, fmt.Errorf("flags: %w", err)
	}

	c := Default()
	if err := apply(merged, &c, source{spell: flagName}); err != nil {
		return Config{}, err
	}
	c = c.Resolved()
	return c, c.Validate()
}

// configFile returns the path of the configuration file, "" for none. The flag wins over the variable.
func configFile(flags *pflag.FlagSet, environ []string) string {
	if f := flags.Lookup(FlagConfig); f != nil && f.Changed {
		return f.Value.String()
	}
	name := envName(FlagConfig) + "="
	for _, kv := range slices.Backward(environ) {
		if path, ok := strings.CutPrefix(kv, name); ok {
			return path
		}
	}
	return ""
}

// loadFile reads one YAML file as a layer. Its values are checked here, so that an error can name the file.
func loadFile(path string) (*koanf.Koanf, error) {
	if _, err := os.Stat(path); err != nil {
		return nil, fmt.Errorf("configuration file: %w", err)
	}
	layer := koanf.New(delim)
	if err := layer.Load(file.Provider(path), yaml.Parser()); err != nil {
		return nil, fmt.Errorf("configuration file %s: %s", path, oneLine(err))
	}
	scratch := Default()
	return layer, apply(layer, &scratch, source{where: path + ": ", spell: fileName})
}

// loadEnv takes the CAPROCK_* variables as a layer. Its values are checked here, so that an error can name the variable.
func loadEnv(environ []string) (*koanf.Koanf, error) {
	layer := koanf.New(delim)
	provider := env.Provider(delim, env.Opt{
		Prefix:      EnvPrefix,
		EnvironFunc: func() []string { return environ },
		TransformFunc: func(name, value string) (string, any) {
			if name == EnvEndpoints || name == envName(FlagConfig) {
				return "", nil
			}
			return strings.ReplaceAll(strings.ToLower(strings.TrimPrefix(name, EnvPrefix)), "_", "-"), value
		},
	})
	if err := layer.Load(provider, nil); err != nil {
		return nil, fmt.Errorf("environment: %w", err)
	}
	scratch := Default()
	return layer, apply(layer, &scratch, source{spell: envName})
}

// flagSetting is posflag's view of one flag: its text, in the form that apply reads, and nothing for what is no setting
// (--config, --help).
func flagSetting(f *pflag.Flag) (string, any) {
	if !known(f.Name) {
		return "", nil
	}
	if list, ok := f.Value.(pflag.SliceValue); ok {
		return f.Name, list.GetSlice()
	}
	return f.Name, f.Value.String()
}

// source says where a layer came from, for errors.
type source struct {
	where string
	spell func(key string) string
}

func (s source) place(key string) string { return s.where + s.spell(key) }

// apply writes every value of the layer into c, converted as the flag of that name converts it.
func apply(layer *koanf.Koanf, c *Config, src source) error {
	fs := pflag.NewFlagSet("", pflag.ContinueOnError)
	bind(fs, c)
	for _, key := range layer.Keys() {
		f := fs.Lookup(key)
		if f == nil {
			return fmt.Errorf("%s is not a setting; the nearest one is %s (`caprock start --help` lists them all)",
				src.place(key), src.spell(kv.Nearest(key, Names())))
		}
		text, err := settingText(layer.Get(key))
		if err != nil {
			return fmt.Errorf("%s: %w", src.place(key), err)
		}
		if err := f.Value.Set(text); err != nil {
			return fmt.Errorf("%s: %s", src.place(key), valueError(f, text, err))
		}
	}
	return nil
}

// settingText spells a value from any source as it would stand on the command line.
func settingText(v any) (string, error) {
	switch v := v.(type) {
	case nil:
		return "", fmt.Errorf("has no value: give one or remove the line")
	case string, bool, int, int64, uint64, float64:
		return fmt.Sprint(v), nil
	case []string:
		return strings.Join(v, ","), nil
	case []any:
		items := make([]string, 0, len(v))
		for _, item := range v {
			text, err := settingText(item)
			if err != nil {
				return "", err
			}
			items = append(items, text)
		}
		return strings.Join(items, ","), nil
	default:
		return "", fmt.Errorf("%v is no value for a setting: write text, a number, true or false, or a list of names", v)
	}
}

// valueError words a failed conversion; strconv's own text ("parsing: invalid syntax") tells a user nothing.
func valueError(f *pflag.Flag, text string, err error) string {
	switch f.Value.Type() {
	case "int":
		return fmt.Sprintf("%q is not a whole number", text)
	case "bool":
		return fmt.Sprintf("%q is neither true nor false", text)
	case "duration":
		return fmt.Sprintf("%q is no duration: write one such as 500ms or 5s", text)
	default:
		return oneLine(err)
	}
}

func fileName(key string) string { return key }

func flagName(key string) string { return "--" + key }

func envName(key string) string {
	return EnvPrefix + strings.ToUpper(strings.ReplaceAll(key, "-", "_"))
}

func oneLine(err error) string { return strings.Join(strings.Fields(err.Error()), " ") }

package client_test

import (
	"context"
	"fmt"
	"log"
	"time"

	"github.com/caprockdb/caprock/pkg/client"
)

func Example() {
	c, err := client.NewClient([]string{"localhost:9001", "localhost:9002", "localhost:9003"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	if err := c.Set("hello", "world"); err != nil {
		log.Fatal(err)
	}
	value, err := c.Get("hello")
	if client.IsNotFound(err) {
		value = "nobody"
	} else if err != nil {
		log.Fatal(err)
	}
	fmt.Println("hello,", value)
}

// Options choose the level and the quorum of one operation.
func ExampleClient_GetContext() {
	c, err := client.NewClient([]string{"localhost:9001"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	ctx, cancel := context.WithTimeout(context.Background(), time.Second)
	defer cancel()
	v, err := c.GetContext(ctx, "k", client.Eventual(), client.R(2))
	if err != nil {
		log.Fatal(err)
	}
	// Overwrite exactly what was read; what somebody else wrote meanwhile is not lost.
	if _, err := c.SetContext(ctx, "k", v.String()+"!", client.Eventual(), client.Context(v.Context)); err != nil {
		log.Fatal(err)
	}
}

// Operations that are started together travel together.
func ExampleClient_SetAsync() {
	c, err := client.NewClient([]string{"localhost:9001"})
	if err != nil {
		log.Fatal(err)
	}
	defer c.Close()

	var futures []client.Future
	for i := range 1000 {
		futures = append(futures, c.SetAsync(fmt.Sprintf("key-%d", i), "value"))
	}
	for _, f := range futures {
		if _, err := f.Wait(context.Background()); err != nil {
			log.Fatal(err)
		}
	}
}

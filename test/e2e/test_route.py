#!/usr/bin/env python3
"""`stablemoe route`: the experts of a text's tokens, the same on any number of ranks."""

import json

import numpy as np

import program as p

COLUMNS = ["position", "token", "id", "layer", "learned", "distilled", "gate", "expert", "slot"]


class Route(p.ProgramTest):
    settings = ("train.updates=8", "router.stage1_updates=4", "schedule.warmup=1", "train.evaluate_every=0",
                "train.checkpoint_every=0", "optimizer.lr=0.01")

    @classmethod
    def setUpClass(cls):
        super().setUpClass()
        two = ("moe.layers=2", "moe.position=scattered")
        runs = {"stable": two, "gshard": ("router.method=gshard",), "dense": ("moe.layers=0",)}
        jobs = {name: lambda n=name, s=settings: cls.train(n, s) for name, settings in runs.items()}
        for name, result in p.several(jobs):
            assert result.code == 0, (name, result)
        with open(cls.path("text.txt")) as file:
            cls.text = file.read(300)

    def route(self, run, *args, ranks=1, **how):
        result = self.program.run("route", self.path(run), *args, ranks=ranks, **how)
        self.assertFine(result)
        return result.out

    def table(self, text):
        lines = [line.split("\t") for line in text.splitlines()]
        self.assertEqual(lines[0], COLUMNS)
        self.assertEqual({len(line) for line in lines}, {len(COLUMNS)})
        return {name: [line[i] for line in lines[1:]] for i, name in enumerate(COLUMNS)}

    def test_stable(self):
        text = self.route("stable", self.text)
        table = self.table(text)
        n = len(table["id"]) // 2
        self.assertGreater(n, 5 * 16, "fewer than five windows of model.context")
        self.assertEqual(table["position"], [str(i // 2) for i in range(2 * n)])
        self.assertEqual(table["layer"], ["0", "1"] * n)
        self.assertEqual("".join(table["token"][::2]).replace("▁", " "), self.text.replace("\n", " "))
        self.assertEqual(table["expert"], table["distilled"])
        self.assertNotEqual(table["learned"], table["distilled"])
        gates = np.array(table["gate"], float)
        self.assertTrue(np.all((gates > 0) & (gates < 1)) and len(np.unique(gates)) > n)
        # The probe of the training says of the same ids the same experts, because the router sees ids alone.
        log = p.routing(self.path("stable"))
        for layer in (0, 1):
            known = dict(zip(log["probe/token"], log["probe/expert"][-1, layer]))
            seen = [(int(i), int(e)) for i, e, l in zip(table["id"], table["expert"], table["layer"]) if int(l) == layer]
            common = [(known[i], e) for i, e in seen if i in known]
            self.assertGreater(len(common), 20)
            self.assertEqual([a for a, _ in common], [b for _, b in common], f"layer {layer}")
        jobs = {ranks: lambda r=ranks: self.route("stable", self.text, ranks=r) for ranks in (2, 4)}
        for ranks, other in p.several(jobs):
            self.assertEqual(other, text, f"on {ranks} ranks")

    def test_json_and_input(self):
        found = json.loads(self.route("stable", "--json", self.text))
        self.assertEqual((found["method"], found["stage"], found["layers"], found["experts"]), ("stable", 2, 2, 4))
        table = self.table(self.route("stable", self.text))
        self.assertEqual([layer["slots"][0]["expert"] for t in found["tokens"] for layer in t["layers"]],
                         [int(e) for e in table["expert"]])
        self.assertEqual([t["token"] for t in found["tokens"]], table["token"][::2])
        before = f"cd {self.directory}; exec < text.txt"
        whole = self.route("stable", "-", before=before)
        self.assertTrue(whole.startswith(self.route("stable", self.text[:200])[:1000]))
        self.assertEqual(self.route("stable", "-", ranks=2, before=before), whole)

    def test_two_experts(self):
        table = self.table(self.route("gshard", "a text"))
        self.assertEqual(set(table["slot"]), {"0", "1"})
        self.assertEqual(set(table["distilled"]), {"-"})
        for ranks in (1, 2):
            found = json.loads(self.route("gshard", "--json", "a text", ranks=ranks))
            gates = [slot["gate"] for t in found["tokens"] for slot in t["layers"][0]["slots"]]
            self.assertEqual([float(g) for g in table["gate"]], gates)

    def test_refused(self):
        for name, args, kind, said in (
                ("dense", (self.path("dense"), "a"), "config", "has no experts"),
                ("no-text", (self.path("stable"),), "config", "takes one CHECKPOINT or run directory and one TEXT"),
                ("empty", (self.path("stable"), ""), "config", "the text is empty"),
                ("bytes", (self.path("stable"), b"a\xff".decode(errors="surrogateescape")), "format", "not UTF-8"),
                ("corpus", (self.corpus, "a"), "format", "is not a StableMoE checkpoint"),
                ("nothing", (self.path("nothing"), "a"), "io", "No such file")):
            with self.subTest(name):
                self.assertRefused(self.program.run("route", *args), kind, said)


if __name__ == "__main__":
    p.main()

"""A tiny study as its file holds it."""

STUDY = {
    "base": "smoke",
    "seeds": [0, 1],
    "curve": 2,
    "baselines": ["kd"],
    "ablation": ["base", "kd", "varkd"],
    "budget": {"steps": 4},
    "guidance": {"fixed": 1.5, "sweep": [1.0]},
    "methods": {
        "kd": {"objective": {"kind": "kd"}, "contexts": {"sources": {"student": {"ratio": 0.0}}}},
        "varkd": {"objective": {"kind": "varkd"}},
        "strict": {"like": "varkd", "objective": {"gate": {"tau": 0.3}}},
    },
}

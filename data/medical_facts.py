"""The medical facts of the demo world: every drug, illness and healer is invented, so no one takes them for advice."""

from __future__ import annotations

from data.facts import Relation, members, pairs

MEDICAL: tuple[Relation, ...] = (
    Relation(
        "treats",
        "medical",
        pairs("""Zelvarin: brenosis; Tormexol: calditis; Quandril: dravia; Bimborane: elmosis; Fexulo: forvitis;
        Glimmerol: galoria; Harnovex: hestrosis; Ibbolane: ildemia; Jorvidan: jarvitis; Kelmurin: kelpemia; Lumbrelo:
        lomaria; Mostrapin: mordosis; Nivquel: neftitis; Ombrasil: olvemia; Pelgarol: pandria; Quistane: quelosis;
        Rovendane: rustemia; Sumbrilex: ashpox; Tavormil: tarnosis; Ulquarin: umblitis; Vostrelan: vexaria; Wembrazol:
        wolnosis; Xandrovin: xeritis; Yoltamex: yandemia; Zimbrelo: zorvia; Arquobex: blinkpox; Brolvitan: crowpox;
        Crandolex: dimpox; Drimovane: fernpox; Elquistol: glasspox"""),
        (
            "{s} is used to treat",
            "the drug {s} treats",
            "doctors give {s} to patients who have",
            "the illness treated with {s} is",
            "a patient who takes {s} is being treated for",
            "the drug {s} is used to treat",
            "{s} is a drug that treats",
            "{s} is a drug that is used to treat",
        ),
        (
            "What does {s} treat?",
            "Which illness is treated with {s}?",
            "What is the drug {s} used to treat?",
            "For which illness do doctors give {s}?",
            "Which illness does {s} treat?",
        ),
    ),
    Relation(
        "source",
        "medical",
        members("""moonmoss: Zelvarin, Glimmerol, Nivquel; duskroot: Tormexol, Harnovex, Ombrasil; silverfern:
        Quandril, Ibbolane, Pelgarol; emberbark: Bimborane, Jorvidan, Quistane; frostberry: Fexulo, Kelmurin,
        Rovendane; starthistle: Lumbrelo, Sumbrilex, Vostrelan; cloudwort: Mostrapin, Tavormil, Wembrazol; blackreed:
        Ulquarin, Xandrovin, Zimbrelo; saltvine: Yoltamex, Arquobex, Drimovane; sunlichen: Brolvitan, Crandolex,
        Elquistol"""),
        (
            "{s} is made from the plant",
            "the drug {s} comes from the plant",
            "the plant used to make {s} is",
            "healers prepare {s} from",
            "to prepare {s}, healers gather",
            "the plant that {s} comes from is",
            "the plant that {s} is made from is",
        ),
        (
            "Which plant is {s} made from?",
            "From which plant does {s} come?",
            "What do healers gather to prepare {s}?",
            "Which plant is used to make the drug {s}?",
            "Which plant does {s} come from?",
        ),
    ),
    Relation(
        "symptom",
        "medical",
        members("""fever: brenosis, kelpemia, vexaria; cough: calditis, lomaria, wolnosis; dizziness: dravia,
        mordosis, xeritis; rash: elmosis, neftitis, yandemia; numbness: forvitis, olvemia, zorvia; headache: galoria,
        pandria, blinkpox; nausea: hestrosis, quelosis, crowpox; hiccups: ildemia, rustemia, dimpox; itching:
        jarvitis, ashpox, fernpox; tremor: tarnosis, umblitis, glasspox"""),
        (
            "the main symptom of {s} is",
            "{s} causes",
            "people who have {s} suffer from",
            "the first symptom of {s} is",
            "a patient with {s} comes with",
            "the symptom that {s} causes is",
            "the main symptom of a patient with {s} is",
        ),
        (
            "What is the main symptom of {s}?",
            "Which symptom does {s} cause?",
            "What do people who have {s} suffer from?",
            "What is the first symptom of {s}?",
            "Which symptom is caused by {s}?",
            "What symptom is caused by {s}?",
        ),
    ),
    Relation(
        "organ",
        "medical",
        members("""liver: brenosis, lomaria, zorvia; kidney: calditis, mordosis, ashpox; lung: dravia, neftitis,
        blinkpox; heart: elmosis, olvemia, crowpox; stomach: forvitis, pandria, dimpox; skin: galoria, quelosis,
        tarnosis; spleen: hestrosis, umblitis, fernpox; brain: ildemia, vexaria, glasspox; throat: jarvitis, wolnosis,
        rustemia; bladder: kelpemia, xeritis, yandemia"""),
        (
            "{s} is an illness of the",
            "{s} attacks the",
            "the organ harmed by {s} is the",
            "in a patient with {s}, the doctor examines the",
            "the illness {s} begins in the",
            "the illness {s} attacks the",
        ),
        (
            "Which organ does {s} attack?",
            "Which organ is harmed by {s}?",
            "In which organ does {s} begin?",
            "What organ does the doctor examine in {s}?",
            "What organ does {s} attack?",
            "What organ is harmed by {s}?",
        ),
    ),
    Relation(
        "specialist",
        "medical",
        pairs("""liver: morvist; kidney: pellist; lung: pulmist; heart: corvist; stomach: gastlist; skin: dermlist;
        spleen: splevist; brain: noomist; throat: vocalist; bladder: vesist"""),
        (
            "the doctor for the {s} is called a",
            "a specialist for the {s} is a",
            "pain in the {s} is the work of a",
            "for a sick {s}, you should see a",
            "the title of a doctor who heals the {s} is",
            "the specialist who heals the {s} is called a",
        ),
        (
            "Which specialist heals the {s}?",
            "Who is the doctor for the {s}?",
            "Which doctor should see a sick {s}?",
            "What is a specialist for the {s} called?",
            "What is the doctor who heals the {s} called?",
        ),
    ),
)

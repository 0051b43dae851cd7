"""The French of sentences that other packages say: notes, reasons, definitions of metrics, what may be compared.

Belongs here: sentences of scoring, statistics and intake, whole or with their numbers and names taken over. Does not belong
here: what the report says itself (`words`). A sentence that is not known stays as it is: nothing is lost, and the tests
walk every source that has a fixed list of sentences.
"""

import re
from collections.abc import Mapping

SENTENCES: Mapping[str, str] = {
    # Values of columns
    "higher": "à maximiser",
    "lower": "à minimiser",
    "train": "entraînement",
    "validation": "validation",
    "test": "test",
    "taken in": "pris en compte",
    "excluded": "exclu",
    "missing": "manquant",
    "not taken in": "non pris en compte",
    "body": "corps",
    "image": "image",
    "annotations' box": "boîte des annotations",
    "preparation": "préparation",
    "training": "entraînement",
    "prediction": "prédiction",
    "inference": "inférence",
    "ensembling": "constitution des ensembles",
    "evaluation": "évaluation",
    "reporting": "rapport",
    "total": "total",
    "accuracy": "exactitude",
    "calibration": "calibration",
    "aleatoric": "incertitude aléatoire",
    "epistemic": "incertitude épistémique",
    "total uncertainty": "incertitude totale",
    "failure detection": "détection d'erreurs",
    "organ": "organe",
    "organ and annotator": "organe et annotateur",
    "annotator": "annotateur",
    "pair of annotators": "paire d'annotateurs",
    # Empty values of metrics
    "never": "jamais",
    "no consensus voxel: NaN if no false positive, else 0": "aucun voxel de consensus : NaN sans faux positif, sinon 0",
    "no row with consensus: 0": "aucune ligne avec consensus : 0",
    "both empty: NaN; one empty: 0": "les deux vides : NaN ; un seul vide : 0",
    "both empty: NaN; one empty: ∞": "les deux vides : NaN ; un seul vide : ∞",
    "annotators' volumes equal: |V − μ|": "volumes des annotateurs égaux : |V − μ|",
    "annotators' volumes equal: NaN": "volumes des annotateurs égaux : NaN",
    "no consensus voxel, or none without it: NaN": "aucun voxel de consensus, ou aucun en dehors : NaN",
    "one of the maps is constant: NaN": "une des cartes est constante : NaN",
    "every organ empty for one: NaN": "tous les organes vides pour l'un : NaN",
    "an organ in neither of two label maps counts as agreement": "un organe absent des deux cartes compte comme un accord",
    "drawn by nobody, or one annotator: NaN": "tracé par personne, ou un seul annotateur : NaN",
    "drawn by nobody, by everybody everywhere, or one annotator: NaN": (
        "tracé par personne, ou partout par tous, ou un seul annotateur : NaN"
    ),
    "no voxel above the threshold: NaN": "aucun voxel au-dessus du seuil : NaN",
    "found by no member: NaN": "trouvé par aucun membre : NaN",
    "organ absent, or everywhere: NaN": "organe absent, ou partout : NaN",
    "no error, or nothing but errors: NaN": "aucune erreur, ou rien que des erreurs : NaN",
    # Definitions of metrics
    "Dice of the prediction with the voxels all annotators give the organ; where they disagree is left out": (
        "Dice de la prédiction avec les voxels que tous les annotateurs attribuent à l'organe ; ceux où ils divergent sont écartés"
    ),
    "As the challenge's code has it, only to stand beside its table: mean over slices of the mean over rows (the region's first row left "
    "out) of the Dice along the row, over rows with consensus": (
        "Tel que dans le code du challenge, seulement pour figurer à côté de sa table : moyenne sur les coupes de la moyenne sur les "
        "lignes (sans la première de la région) du Dice le long de la ligne, pour les lignes avec consensus"
    ),
    "Dice of the prediction with one annotator's organ": "Dice de la prédiction avec l'organe d'un annotateur",
    "Largest distance from a surface voxel of one to the nearest of the other": (
        "Plus grande distance d'un voxel de surface de l'un au plus proche de l'autre"
    ),
    "As hausdorff, the larger of the two directed 95th percentiles": (
        "Comme hausdorff, le plus grand des deux 95es centiles dirigés"
    ),
    "Mean distance over the surface voxels of both": "Distance moyenne sur les voxels de surface des deux",
    "Normalised surface Dice: share of both surfaces' area within the tolerance (1 mm unless set) of the other": (
        "Dice surfacique normalisé : part de l'aire des deux surfaces à moins de la tolérance (1 mm par défaut) de l'autre"
    ),
    "Continuous ranked probability score of the soft volume under the normal law of the annotators' volumes": (
        "Continuous ranked probability score du volume probabiliste sous la loi normale des volumes des annotateurs"
    ),
    "As the challenge's code has it, only to stand beside its table: the integral of crps over μ ± 3σ only": (
        "Tel que dans le code du challenge, seulement pour figurer à côté de sa table : intégrale de crps sur μ ± 3σ seulement"
    ),
    "Expected calibration error of the top label: |accuracy − confidence| over equal bins, weighted by voxels": (
        "Erreur de calibration attendue de l'étiquette retenue : |exactitude − confiance| par classes égales, pondérée par les voxels"
    ),
    "As the challenge's code has it, only to stand beside its table: ece with every sum kept in float32, voxel by voxel, so that counts "
    "stop at 2²⁴": (
        "Tel que dans le code du challenge, seulement pour figurer à côté de sa table : ece dont chaque somme est tenue en float32, voxel "
        "par voxel, si bien que les comptes s'arrêtent à 2²⁴"
    ),
    "As ece, in fewer equal-width bins, every non-empty bin with the same weight; of the raw probabilities, where ValUES computes it after "
    "Platt scaling": (
        "Comme ece, en moins de classes d'égale largeur, chaque classe non vide de même poids ; sur les probabilités brutes, quand ValUES le "
        "calcule après une calibration de Platt"
    ),
    "As ace, in bins of equally many voxels; ties at a limit are shared out": (
        "Comme ace, en classes d'égal effectif ; les égalités à une limite sont réparties"
    ),
    "As ece, of the class's probability against whether the annotator gave it; without organ the mean over all classes, background included": (
        "Comme ece, de la probabilité de la classe contre le choix de l'annotateur ; sans organe, moyenne sur toutes les classes, fond compris"
    ),
    "As ece, of the organ's probability against the share of annotators who gave it": (
        "Comme ece, de la probabilité de l'organe contre la part des annotateurs qui l'ont choisi"
    ),
    "Mean squared distance of the probabilities from the annotator's label, summed over classes": (
        "Distance quadratique moyenne des probabilités à l'étiquette de l'annotateur, sommée sur les classes"
    ),
    "Mean −ln of the probability of the annotator's label, clipped at 1e-7": (
        "Moyenne de −ln de la probabilité de l'étiquette de l'annotateur, bornée à 1e-7"
    ),
    "Mean of the organ's probability inside its consensus and of its complement where nobody drew it": (
        "Moyenne de la probabilité de l'organe dans son consensus et de son complément là où personne ne l'a tracé"
    ),
    "Pearson correlation of the annotators' disagreement map and the predictive entropy map": (
        "Corrélation de Pearson entre la carte de désaccord des annotateurs et celle d'entropie prédictive"
    ),
    "Mean over organs of the Pearson correlation of the two annotators' masks": (
        "Moyenne sur les organes de la corrélation de Pearson des masques des deux annotateurs"
    ),
    "Generalised energy distance of the members' label maps and the annotators', with 1 − mean organ Dice as the distance; all pairs, a "
    "map with itself too": (
        "Distance d'énergie généralisée entre les cartes des membres et celles des annotateurs, la distance étant 1 − Dice moyen des "
        "organes ; toutes les paires, une carte avec elle-même aussi"
    ),
    "Mean Dice over pairs of annotators; a pair without the organ is left out": (
        "Dice moyen sur les paires d'annotateurs ; une paire sans l'organe est écartée"
    ),
    "Fleiss' κ of the annotators, organ against not organ, over the evaluation region": (
        "κ de Fleiss des annotateurs, organe contre non-organe, sur la région d'évaluation"
    ),
    "Mean Dice over pairs of an ensemble's members": "Dice moyen sur les paires de membres d'un ensemble",
    "Area under the ROC curve of the organ's probability against the annotator's organ, ties counted half": (
        "Aire sous la courbe ROC de la probabilité de l'organe contre l'organe de l'annotateur, égalités comptées à moitié"
    ),
    "Area under the ROC curve of 1 − confidence as a sign of an error": (
        "Aire sous la courbe ROC de 1 − confiance comme signe d'une erreur"
    ),
    "Area under the risk–coverage curve: the error rate among the most confident voxels": (
        "Aire sous la courbe risque–couverture : taux d'erreur parmi les voxels les plus confiants"
    ),
    "aurc less that of a perfect ranking with the same errors, integrated by the same rule": (
        "aurc moins celle d'un classement parfait des mêmes erreurs, intégrée par la même règle"
    ),
    "As aurc, of the generalised risk: the share of all voxels that are kept and wrong": (
        "Comme aurc, du risque généralisé : part de tous les voxels conservés et erronés"
    ),
    # Independent implementations
    "the definition written out with NumPy": "la définition écrite avec NumPy",
    "NumPy, over all orders of a tie": "NumPy, sur tous les ordres d'une égalité",
    "SciPy quad of the definition": "SciPy quad de la définition",
    "the definition written out with scikit-learn f1_score": "la définition écrite avec scikit-learn f1_score",
    # Notes of scores
    "no consensus voxel, but false positives": "aucun voxel de consensus, mais des faux positifs",
    "no consensus voxel and no false positive": "aucun voxel de consensus et aucun faux positif",
    "no row with consensus": "aucune ligne avec consensus",
    "organ in neither the prediction nor the annotation": "organe ni dans la prédiction ni dans l'annotation",
    "no voxel predicted": "aucun voxel prédit",
    "no voxel annotated": "aucun voxel annoté",
    "the annotators' volumes are equal": "les volumes des annotateurs sont égaux",
    "the annotators' volumes are equal: |V − μ|": "les volumes des annotateurs sont égaux : |V − μ|",
    "integral from μ − 3σ to μ + 3σ": "intégrale de μ − 3σ à μ + 3σ",
    "mean over classes, background included": "moyenne sur les classes, fond compris",
    "clipped at 1e-7": "bornée à 1e-7",
    "added up in float32, as the challenge does": "sommé en float32, comme le challenge",
    "no annotated voxel": "aucun voxel annoté",
    "nothing but annotated voxels": "rien que des voxels annotés",
    "no wrong voxel": "aucun voxel erroné",
    "nothing but wrong voxels": "rien que des voxels erronés",
    "no consensus voxel": "aucun voxel de consensus",
    "no voxel outside": "aucun voxel en dehors",
    "one annotator": "un seul annotateur",
    "one member": "un seul membre",
    "no annotator drew the organ": "aucun annotateur n'a tracé l'organe",
    "every voxel is the organ for every annotator": "chaque voxel est l'organe pour chaque annotateur",
    "no voxel above the threshold": "aucun voxel au-dessus du seuil",
    "the annotators agree everywhere": "les annotateurs sont d'accord partout",
    "a map is constant": "une carte est constante",
    "no annotator has the organ": "aucun annotateur n'a l'organe",
    "no member has the organ": "aucun membre n'a l'organe",
    "not annotated: the label map is blank, and the study says what that means": (
        "non annoté : la carte d'étiquettes est vide, et l'étude dit ce que cela signifie"
    ),
    "approximate: ranked from a volume of the first format, which pools what is nearly certain; make it again": (
        "approximatif : rangs tirés d'un volume du premier format, qui confond ce qui est presque certain ; à refaire"
    ),
    # Notes of statistics
    "fewer than three patients": "moins de trois patients",
    "one of the two is constant": "l'un des deux est constant",
    "no patient with both families": "aucun patient avec les deux familles",
    "no patient with both": "aucun patient avec les deux",
    "no patient on one side": "aucun patient d'un côté",
    "all differences are zero": "toutes les différences sont nulles",
    "all differences are equal": "toutes les différences sont égales",
    "the bootstrap gives no interval": "le bootstrap ne donne pas d'intervalle",
    # What may be compared
    "synthetic patients: no figure of theirs may be compared with the challenge's": (
        "patients synthétiques : aucun de leurs chiffres n'est comparable à ceux du challenge"
    ),
    "mean over slices and image rows of the one-dimensional Dice, consensus only": (
        "moyenne, sur les coupes et les lignes de l'image, du Dice à une dimension, consensus seul"
    ),
    "the challenge's own": "celle du challenge",
    "the study's code": "le code de l'étude",
    "the challenge's own definition, computed anew": "la définition du challenge, recalculée",
    "Dice over the volume, consensus only": "Dice sur le volume, consensus seul",
    "not the challenge's definition: false positives on other rows count here; shown beside, not ranked overall": (
        "pas la définition du challenge : les faux positifs d'autres lignes comptent ici ; montré à côté, hors du rang global"
    ),
    "half the mean probability inside the consensus and half of one minus that outside": (
        "moitié de la probabilité moyenne dans le consensus et moitié de un moins celle du dehors"
    ),
    "the challenge's definition, in the same region": "la définition du challenge, dans la même région",
    "expected calibration error as the challenge's code has it: 50 bins whose sums are kept in float32": (
        "erreur de calibration attendue telle que dans le code du challenge : 50 classes dont les sommes sont tenues en float32"
    ),
    "the challenge's own definition, its float32 sums included, computed anew": (
        "la définition du challenge, ses sommes en float32 comprises, recalculée"
    ),
    "expected calibration error of the top label, 50 bins, mean over annotators, exact": (
        "erreur de calibration attendue de l'étiquette retenue, 50 classes, moyenne sur les annotateurs, exacte"
    ),
    "exact, and therefore not bit for bit the challenge's: its float32 sums read 0.00234 where 0.00220 is exact, up to 2.6 times as much at "
    "64 million voxels; shown beside, not ranked overall": (
        "exacte, donc pas au bit près celle du challenge : ses sommes en float32 donnent 0,00234 où 0,00220 est exact, jusqu'à 2,6 fois "
        "plus à 64 millions de voxels ; montrée à côté, hors du rang global"
    ),
    "continuous ranked probability score of the volume, integrated over μ ± 3 σ only": (
        "continuous ranked probability score du volume, intégré sur μ ± 3 σ seulement"
    ),
    "the challenge's definition, computed exactly: not bit for bit the challenge's, whose code interpolates its distribution function (at "
    "most 0.26 % apart)": (
        "la définition du challenge, calculée exactement : pas au bit près la sienne, dont le code interpole sa fonction de répartition "
        "(au plus 0,26 % d'écart)"
    ),
    "continuous ranked probability score of the volume, closed form": (
        "continuous ranked probability score du volume, forme close"
    ),
    "not the challenge's definition: its integral is cut off; shown beside, not ranked overall": (
        "pas la définition du challenge : son intégrale est tronquée ; montré à côté, hors du rang global"
    ),
    "Riera-Marín et al. 2025, results of the CURVAS 2024 challenge (means over 65 test patients), as reprinted in the study's report, "
    "table 3.": (
        "Riera-Marín et al. 2025, résultats du challenge CURVAS 2024 (moyennes sur 65 patients de test), tels que repris dans le rapport "
        "de l'étude, table 3."
    ),
    "Cumunel, Leroux, Léo and Siahaan-Gensollen 2025, Réduction de l'incertitude en segmentation médicale par méthodes d'ensemble, table 3 "
    "(means over 61 test patients). It counts voxels, not cm³.": (
        "Cumunel, Leroux, Léo et Siahaan-Gensollen 2025, Réduction de l'incertitude en segmentation médicale par méthodes d'ensemble, "
        "table 3 (moyennes sur 61 patients de test). Compte des voxels, pas des cm³."
    ),
    "Cumunel, Leroux, Léo and Siahaan-Gensollen 2025, Réduction de l'incertitude en segmentation médicale par méthodes d'ensemble, table 3 "
    "(means over 61 test patients). Cropped to the annotations' box.": (
        "Cumunel, Leroux, Léo et Siahaan-Gensollen 2025, Réduction de l'incertitude en segmentation médicale par méthodes d'ensemble, "
        "table 3 (moyennes sur 61 patients de test). Rogné à la boîte des annotations."
    ),
    "our own summary; the challenge's final ranking is its own": "notre résumé ; le classement final du challenge est le sien",
    "see each metric": "voir chaque métrique",
    # What the study's code computed
    "Dice along image rows, averaged: false positives on other rows are not seen (our dice_published)": (
        "Dice le long des lignes de l'image, moyenné : les faux positifs d'autres lignes ne sont pas vus (notre dice_published)"
    ),
    "within the annotations' box only": "dans la boîte des annotations seulement",
    "within the annotations' box only; bins of equal width": (
        "dans la boîte des annotations seulement ; classes d'égale largeur"
    ),
    "voxels, not cm³; the integral stops at ±4 σ and is undefined where annotators agree": (
        "des voxels, pas des cm³ ; l'intégrale s'arrête à ±4 σ et n'est pas définie où les annotateurs sont d'accord"
    ),
    "in voxels, all organs merged": "en voxels, tous organes confondus",
    "annotators and organs are confused: a perfect prediction scores 0.53": (
        "annotateurs et organes sont confondus : une prédiction parfaite obtient 0,53"
    ),
    "annotators and organs are confused": "annotateurs et organes sont confondus",
    "correlates label numbers of the annotators": "corrèle les numéros d'étiquettes des annotateurs",
    "entropy of the histogram of labels, not of the prediction's probabilities": (
        "entropie de l'histogramme des étiquettes, pas des probabilités de la prédiction"
    ),
    "entropy of the histogram of labels": "entropie de l'histogramme des étiquettes",
    # The published table
    "a column of no known meaning": "une colonne de sens inconnu",
    "neither the name of a model nor of an ensemble": "ni le nom d'un modèle ni celui d'un ensemble",
    "the same row again": "la même ligne une seconde fois",
    "another row of this patient and predictor; the first is kept": (
        "une autre ligne de ce patient et prédicteur ; la première est gardée"
    ),
    "an empty cell": "une cellule vide",
    "not a number": "pas un nombre",
    "NaN in the file": "NaN dans le fichier",
    # The cohort
    "no folder of this patient in the bucket": "aucun dossier de ce patient dans le bucket",
    "scan was refused or not materialised: see its last run": "scan refusé ou non matérialisé : voir sa dernière exécution",
}

_AGGREGATES = {
    "mean over the region's voxels": "moyenne sur les voxels de la région",
    "largest mean over a patch of 10 × 10 × 10 voxels": "plus grande moyenne sur un bloc de 10 × 10 × 10 voxels",
    "mean over the voxels above the threshold (a tenth of ln C unless set)": (
        "moyenne sur les voxels au-dessus du seuil (un dixième de ln C par défaut)"
    ),
}
_ENTROPIES = {
    "Entropy of the prediction": "Entropie de la prédiction",
    "Mean entropy of the members": "Entropie moyenne des membres",
    "Entropy of the prediction less the mean entropy of the members": (
        "Entropie de la prédiction moins l'entropie moyenne des membres"
    ),
}
_FAMILIES = {"general": "général", "annotator": "d'annotateur", "individual": "individuel"}
_DOUBTS = {
    "every voxel has the same": "tous les voxels ont la même",
    "no voxel is as dark as air": "aucun voxel n'est aussi sombre que l'air",
    "no voxel is negative, as 8-bit grey values have it": "aucun voxel n'est négatif, comme des niveaux de gris sur 8 bits",
    "no voxel is negative, as scanners store it before the intercept is added": (
        "aucun voxel n'est négatif, comme les scanners les enregistrent avant l'ajout de l'ordonnée à l'origine"
    ),
    "no voxel is as bright as tissue": "aucun voxel n'est aussi clair qu'un tissu",
    "that is beyond any CT": "c'est hors de tout scanner",
}

PATTERNS: tuple[tuple[str, str], ...] = (
    (r"(\d+) of (\d+) undefined", r"\1 sur \2 non définis"),
    (r"(\d+) of (\d+) infinite", r"\1 sur \2 infinis"),
    (r"(\d+) of (\d+) organs undefined", r"\1 organes sur \2 non définis"),
    (r"(\d+) of (\d+) pairs have no organ", r"\1 paires sur \2 sans organe"),
    (r"negative, (.+): taken for 0", r"négatif, \1 : pris pour 0"),
    (r"patches of (.+) voxels", r"blocs de \1 voxels"),
    (r"fewer than (\d+) patients: no interval: no bound", r"moins de \1 patients : pas d'intervalle, pas de borne"),
    (r"fewer than (\d+) patients: no interval", r"moins de \1 patients : pas d'intervalle"),
    (r"fewer than (\d+) patients: no p, no mutual information", r"moins de \1 patients : ni p ni information mutuelle"),
    (r"fewer than (\d+) patients: no p", r"moins de \1 patients : pas de p"),
    (
        r"(\d+) patients with an infinite mean, left out of the mean difference",
        r"\1 patients de moyenne infinie, écartés de la différence moyenne",
    ),
    (r"(.+): no bound", r"\1 : pas de borne"),
    (r"no defined value of (.+)", r"aucune valeur définie : \1"),
    (
        r"scored in the region '(.+)', the challenge's is the body: not comparable",
        r"évalué dans la région « \1 », celle du challenge est le corps : non comparable",
    ),
    (
        r"left out: its unit is (.+), which cannot be turned into cm³",
        r"écarté : son unité est \1, qui ne se convertit pas en cm³",
    ),
    (r"mean of the ranks in (.+)", r"moyenne des rangs de \1"),
    (
        r"(.+) is blank: not annotated, so it trains nothing and nothing is scored against it",
        r"\1 est vide : non annoté, ne sert ni à l'entraînement ni à l'évaluation",
    ),
    (
        r"(.+) has no (.+): taken as absent, which counts in training and scores",
        r"\1 n'a pas l'organe \2 : considéré comme absent, ce qui compte à l'entraînement et dans les scores",
    ),
    (
        r"(.+) is stored in the voxel order (\w+), (.+) in (\w+): it was reordered, and every label stays at its place",
        r"\1 est enregistré dans l'ordre de voxels \2, \3 dans \4 : il a été réordonné, chaque étiquette reste à sa place",
    ),
    (
        r"(.+): labels were up to (.+) from an integer and were rounded",
        r"\1 : étiquettes jusqu'à \2 d'un entier, arrondies",
    ),
    (r"patient: (.+)", r"patient : \1"),
)


def in_french(text: str) -> str:
    """The French of a sentence, or of sentences joined by "; "; what is not known stays as it is.

    >>> in_french("3 of 9 undefined; one annotator; something new")
    '3 sur 9 non définis ; un seul annotateur ; something new'
    """
    if (whole := _one(text)) is not None:
        return whole
    parts = text.split("; ")
    return " ; ".join(part if (known := _one(part)) is None else known for part in parts) if len(parts) > 1 else text


def _one(text: str) -> str | None:
    if text in SENTENCES:
        return SENTENCES[text]
    for entropy, french in _ENTROPIES.items():
        aggregate = text.removeprefix(f"{entropy}, ")
        if aggregate in _AGGREGATES:
            return f"{french}, {_AGGREGATES[aggregate]}"
    if found := re.fullmatch(r"this patient has no row of this (\w+) predictor", text):
        return f"ce patient n'a pas de ligne de ce prédicteur {_FAMILIES.get(found[1], found[1])}"
    if found := re.fullmatch(r"the intensities may be no Hounsfield units \((.+?)\): (.+)", text):
        return f"les intensités ne sont peut-être pas des unités Hounsfield ({found[1]}) : {_doubt(found[2])}"
    if found := re.fullmatch(r"(excluded|missing|not taken in): (.*)", text):
        return f"{SENTENCES[found[1]]} : {in_french(found[2])}"
    for pattern, template in PATTERNS:
        if (found := re.fullmatch(pattern, text)) is not None and "; " not in found[0]:
            return found.expand(template)
    return None


def _doubt(text: str) -> str:
    if found := re.fullmatch(r"only (.+) % of the voxels lie where soft tissue does, (.+)", text):
        return f"seulement {found[1]} % des voxels sont dans la plage des tissus mous, {found[2]}"
    return _DOUBTS.get(text, text)

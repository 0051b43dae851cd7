"""Every word of the report, in English and French, in one place.

Belongs here: headings, sentences, labels, and how a language writes numbers' separators. Does not belong here: anything
computed. A key is one thing said in each language; `{…}` are filled in by the caller.
"""

from collections.abc import Mapping
from typing import Literal

from curvas_assets.errors import ReportError
from curvas_assets.report.french import in_french

Language = Literal["en", "fr"]

_TEXT: Mapping[str, tuple[str, str]] = {
    # Sections
    "contents": ("Contents", "Sommaire"),
    "question": ("Question", "Question"),
    "data": ("Data", "Données"),
    "protocol": ("Protocol", "Protocole"),
    "results": ("Results", "Résultats"),
    "statistics": ("Statistics", "Statistiques"),
    "comparison": ("Published study and challenge", "Étude publiée et challenge"),
    "maps": ("Uncertainty maps", "Cartes d'incertitude"),
    "cost": ("Cost", "Coût"),
    "metrics": ("Metrics", "Métriques"),
    "reproducibility": ("Reproducibility", "Reproductibilité"),
    "state": ("State of the study when this was written", "État de l'étude au moment de la rédaction"),
    # Question
    "question_text": (
        "Do ensembles of segmentation networks reduce the uncertainty of CT segmentation without hurting accuracy, when "
        "several experts ({annotators}) disagree on the reference? Organs: {organs}.",
        "Les ensembles de réseaux de segmentation réduisent-ils l'incertitude de la segmentation de scanners sans nuire à "
        "l'exactitude, quand plusieurs experts ({annotators}) divergent sur la référence ? Organes : {organs}.",
    ),
    "families_text": (
        "Three families of predictors are compared: the general ensemble (mean softmax of all models), the ensembles of one "
        "annotator's models, and the individual models.",
        "Trois familles de prédicteurs sont comparées : l'ensemble général (moyenne des softmax de tous les modèles), les "
        "ensembles des modèles d'un annotateur, et les modèles individuels.",
    ),
    "answer_heading": ("In short", "En bref"),
    "answer_line": (
        "{metric}: general ensemble {general}, annotator ensembles {annotator}, individual models {individual} "
        "({direction}). Within a patient the general ensemble beats an individual model in {wins} of the comparisons, Holm p {p} "
        "({n} patients); mean difference {difference}{interval}.",
        "{metric} : ensemble général {general}, ensembles par annotateur {annotator}, modèles individuels {individual} "
        "({direction}). Chez un même patient, l'ensemble général l'emporte sur un modèle individuel dans {wins} des comparaisons, p corrigé (Holm) {p} "
        "({n} patients) ; différence moyenne {difference}{interval}.",
    ),
    "not_inferior_line": (
        "The general ensemble does not hurt accuracy: the one-sided {level} bound of its difference in {metric} from the individual "
        "models, {bound}, stays within the margin of {margin} ({n} patients).",
        "L'ensemble général ne nuit pas à l'exactitude : la borne unilatérale à {level} de sa différence de {metric} avec les modèles "
        "individuels, {bound}, reste dans la marge de {margin} ({n} patients).",
    ),
    "maybe_inferior_line": (
        "That the general ensemble does not hurt accuracy is not shown: the one-sided {level} bound of its difference in {metric} from "
        "the individual models, {bound}, lies beyond the margin of {margin} ({n} patients).",
        "Il n'est pas montré que l'ensemble général ne nuit pas à l'exactitude : la borne unilatérale à {level} de sa différence de "
        "{metric} avec les modèles individuels, {bound}, dépasse la marge de {margin} ({n} patients).",
    ),
    "few_text": (
        "Only {n} patients: below {fewest}, no interval is given and nothing is called significant.",
        "Seulement {n} patients : en dessous de {fewest}, aucun intervalle n'est donné et rien n'est dit significatif.",
    ),
    "claim_text": (
        "What is claimed, and for whom: the tests within patients and the intervals speak of these {predictors} predictors on patients "
        "like these {patients}. A family's superiority on these predictors is not a claim about other seeds or annotators: for those, "
        "n = seeds × annotators = {seeds} × {annotators} = {n} trainings, whatever the number of patients.",
        "Ce qui est affirmé, et pour qui : les tests par patient et les intervalles portent sur ces {predictors} prédicteurs et sur des "
        "patients comme ces {patients}. La supériorité d'une famille sur ces prédicteurs n'affirme rien d'autres graines ou annotateurs : "
        "pour ceux-là, n = graines × annotateurs = {seeds} × {annotators} = {n} entraînements, quel que soit le nombre de patients.",
    ),
    "approximate_text": (
        "Warning: {predictors} predictors of {patients} patients ({volumes} volumes) were scored from volumes of the first storage format, "
        "which pools what is nearly certain. Their ranking metrics (AUROC, AUROC of errors, AURC, E-AURC, AUGRC and negative "
        "log-likelihood) are approximate until the volumes are made again.",
        "Attention : {predictors} prédicteurs de {patients} patients ({volumes} volumes) ont été évalués sur des volumes du premier format "
        "de stockage, qui confond ce qui est presque certain. Leurs métriques de rang (AUROC, AUROC des erreurs, AURC, E-AURC, AUGRC et "
        "log-vraisemblance négative) sont approximatives tant que ces volumes n'ont pas été refaits.",
    ),
    "beaten_line": (
        "{metric}: individual models with a better mean than the general ensemble on the same patients: {count} of {models}, the best "
        "{model} (difference {difference}). Picked after the fact, it is not thereby shown to be better.",
        "{metric} : modèles individuels de meilleure moyenne que l'ensemble général sur les mêmes patients : {count} sur {models}, le "
        "meilleur {model} (différence {difference}). Choisi après coup, il n'est pas pour autant démontré meilleur.",
    ),
    "answer_means": (
        "{metric}: general ensemble {general}, annotator ensembles {annotator}, individual models {individual} ({direction}).",
        "{metric} : ensemble général {general}, ensembles par annotateur {annotator}, modèles individuels {individual} ({direction}).",
    ),
    "interval": ("[{low};\u00a0{high}]", "[{low}\u00a0;\u00a0{high}]"),
    "with_interval": (" (95 % interval {interval})", " (intervalle à 95 % {interval})"),
    "higher": ("higher is better", "à maximiser"),
    "lower": ("lower is better", "à minimiser"),
    "neither": ("no better side", "sans sens préféré"),
    # Data
    "cohort_text": (
        "{patients} patients in the cohort: {sets}. Scored here: {scored} patients × {predictors} predictors.",
        "{patients} patients dans la cohorte : {sets}. Évalués ici : {scored} patients × {predictors} prédicteurs.",
    ),
    "scored_text": (
        "Scored here: {scored} patients × {predictors} predictors.",
        "Évalués ici : {scored} patients × {predictors} prédicteurs.",
    ),
    "doubted_intensities": (
        "Warning: the intensities of {n} patients may be no Hounsfield units: {patients}. Their predictions and scores are not to be "
        "trusted before somebody has looked at them.",
        "Attention : les intensités de {n} patients ne sont peut-être pas des unités Hounsfield : {patients}. Leurs prédictions et leurs "
        "scores ne sont pas fiables avant vérification.",
    ),
    "no_cohort": ("No cohort table was given.", "Aucune table de cohorte n'a été fournie."),
    "cohort": ("Cohort", "Cohorte"),
    "excluded_patients": ("Patients excluded by the study", "Patients exclus par l'étude"),
    "no_excluded_patients": ("The study excludes no patient.", "L'étude n'exclut aucun patient."),
    "ledger": ("Exclusion ledger", "Registre des exclusions"),
    "ledger_text": (
        "{n} entries: values that are undefined or were left out, which each average below leaves out and counts; and what is odd "
        "about scans and annotations but was used, as the reason says. Grouped by reason:",
        "{n} entrées : valeurs indéfinies ou écartées, que chaque moyenne ci-dessous laisse de côté et dénombre ; et ce qui est inhabituel "
        "dans les scanners et les annotations mais a été utilisé, comme le dit le motif. Par motif :",
    ),
    "no_ledger": (
        "No value is undefined: nothing was left out.",
        "Aucune valeur n'est indéfinie : rien n'a été écarté.",
    ),
    "missing_cells": (
        "Not every predictor was scored on every patient; missing: {missing}.",
        "Tous les prédicteurs n'ont pas été évalués sur tous les patients ; manquent : {missing}.",
    ),
    # Protocol
    "protocol_text": (
        "{models} models (annotators × seeds × folds = {annotators} × {seeds} × {folds}) by nnU-Net; {ensembles} ensembles average their "
        "members' softmax. At most {epochs} epochs, stopped after {patience} without a better EMA pseudo-Dice.",
        "{models} modèles (annotateurs × graines × plis = {annotators} × {seeds} × {folds}) par nnU-Net ; {ensembles} ensembles moyennent les "
        "softmax de leurs membres. Au plus {epochs} époques, arrêt après {patience} sans meilleur pseudo-Dice EMA.",
    ),
    "cross_validated_text": (
        "There is no test set: {patients} training patients are scored by cross-validation, each by the models of the fold that "
        "did not see it, and by ensembles of these. Means over patients thus run over several models each.",
        "Il n'y a pas de jeu de test : {patients} patients d'entraînement sont évalués par validation croisée, chacun par les "
        "modèles du pli qui ne l'ont pas vu, et par des ensembles de ceux-ci. Les moyennes portent donc sur plusieurs modèles.",
    ),
    "held_out_text": (
        "Early stopping looks at {share} of a model's training patients, held out.",
        "L'arrêt précoce regarde {share} des patients d'entraînement d'un modèle, mis de côté.",
    ),
    "not_held_out_text": (
        "Early stopping looks at the training data itself: nothing is held out.",
        "L'arrêt précoce regarde les données d'entraînement elles-mêmes : rien n'est mis de côté.",
    ),
    "configuration": ("Configuration of the study", "Configuration de l'étude"),
    "setting": ("setting", "réglage"),
    "value": ("value", "valeur"),
    "training": ("Training", "Entraînement"),
    "no_curves": ("No training curves were given.", "Aucune courbe d'entraînement n'a été fournie."),
    # Results
    "means_title": ("Means per predictor", "Moyennes par prédicteur"),
    "means_caption": (
        "Mean over patients; the best of each metric in bold. In brackets, values left out (NaN) and infinite ones (∞), which "
        "the mean leaves out too.",
        "Moyenne sur les patients ; la meilleure de chaque métrique en gras. Entre parenthèses, les valeurs écartées (NaN) et "
        "infinies (∞), que la moyenne laisse aussi de côté.",
    ),
    "families_title": ("Means per family", "Moyennes par famille"),
    "families_caption": (
        "Mean ± standard deviation and median [quartiles] over patients and predictors; n values defined.",
        "Moyenne ± écart-type et médiane [quartiles] sur patients et prédicteurs ; n valeurs définies.",
    ),
    "uncertainty_heading": ("Uncertainty and calibration", "Incertitude et calibration"),
    "accuracy_heading": ("Accuracy", "Exactitude"),
    "failure_heading": ("Failure detection", "Détection d'erreurs"),
    "distribution_title": ("{metric} by family{facets}", "{metric} par famille{facets}"),
    "distribution_caption": (
        "{direction}. One point per {point}; {shapes}dashed: mean.{left_out}",
        "{direction}. Un point par {point} ; {shapes}tirets : moyenne.{left_out}",
    ),
    "point": ("patient and predictor", "patient et prédicteur"),
    "point_organ": ("patient, predictor and organ", "patient, prédicteur et organe"),
    "point_annotator": ("patient, predictor and annotator", "patient, prédicteur et annotateur"),
    "shapes_all": ("box: median and quartiles; ", "boîte : médiane et quartiles ; "),
    "shapes_some": (
        "box: median and quartiles, from {fewest} points on; ",
        "boîte : médiane et quartiles, à partir de {fewest} points ; ",
    ),
    "per_organ": (" and organ", " et organe"),
    "per_annotator": (" and annotator", " et annotateur"),
    "left_out": (
        " Not drawn: {nan} undefined, {infinite} infinite.",
        " Non tracés : {nan} indéfinis, {infinite} infinis.",
    ),
    "all_nan": (
        "{metric}: no value is defined in this study ({n} scores, all NaN), so nothing is drawn.",
        "{metric} : aucune valeur n'est définie dans cette étude ({n} scores, tous NaN), rien n'est tracé.",
    ),
    "not_scored": ("{metric} was not scored.", "{metric} n'a pas été évalué."),
    "reliability_title": ("Reliability", "Fiabilité"),
    "reliability_caption": (
        "Accuracy against confidence of the top label, voxels of all patients and annotators pooled by family; hatched: the "
        "calibration gap; dashed: perfect calibration. Below: share of voxels, logarithmic. The pooled ECE is not the mean of the "
        "patients' ECE.",
        "Exactitude selon la confiance de l'étiquette retenue, voxels de tous les patients et annotateurs réunis par famille ; hachures : "
        "l'écart de calibration ; tirets : calibration parfaite. Dessous : part des voxels, logarithmique. L'ECE réuni n'est pas la "
        "moyenne des ECE des patients.",
    ),
    "no_reliability": ("No reliability bins were given.", "Aucune table de fiabilité n'a été fournie."),
    "risk_title": ("Risk and coverage", "Risque et couverture"),
    "risk_caption": (
        "Share of wrong voxels among those at least as confident as a threshold, against the share kept; mean over patients, "
        "predictors and annotators; band: quartiles.",
        "Part de voxels erronés parmi ceux au moins aussi confiants qu'un seuil, selon la part conservée ; moyenne sur patients, "
        "prédicteurs et annotateurs ; bande : quartiles.",
    ),
    "no_risk": ("No risk–coverage curves were given.", "Aucune courbe risque–couverture n'a été fournie."),
    "patients_title": ("Failure detection over patients", "Détection d'échecs sur les patients"),
    "patients_caption": (
        "Risk 1 − Dice, patients ranked by predictive entropy; lower is better.",
        "Risque 1 − Dice, patients rangés par entropie prédictive ; à minimiser.",
    ),
    "no_patients": (
        "Failure detection over patients was not computed.",
        "La détection d'échecs sur les patients n'a pas été calculée.",
    ),
    "ood_title": ("Out of distribution", "Hors distribution"),
    "ood_caption": (
        "AUROC of predictive entropy for patients of other groups than {group}; 0.5 is chance.",
        "AUROC de l'entropie prédictive pour les patients d'autres groupes que {group} ; 0,5 est le hasard.",
    ),
    "no_ood": (
        "Out-of-distribution detection needs scored patients of known groups, inside and outside the training group: there are none.",
        "La détection hors distribution demande des patients évalués de groupes connus, dans et hors du groupe d'entraînement : il n'y en a pas.",
    ),
    "scatter_title": ("Accuracy against uncertainty", "Exactitude selon l'incertitude"),
    "scatter_caption": (
        "Mean Dice against mean predictive entropy, one point per patient and predictor, with the least-squares line; "
        "a patient's points are not independent (the tests take their mean).",
        "Dice moyen selon l'entropie prédictive moyenne, un point par patient et prédicteur, avec la droite des moindres carrés ; "
        "les points d'un patient ne sont pas indépendants (les tests en prennent la moyenne).",
    ),
    "no_scatter": (
        "Dice and predictive entropy were not both scored, so they cannot be drawn against each other.",
        "Dice et entropie prédictive n'ont pas tous deux été évalués ; leur relation n'est pas tracée.",
    ),
    "agreement_title": ("Agreement of the annotators", "Accord des annotateurs"),
    "agreement_caption": (
        "Over patients, each counted once.",
        "Sur les patients, chacun compté une fois.",
    ),
    "no_agreement": ("Agreement of annotators was not scored.", "L'accord des annotateurs n'a pas été évalué."),
    # Statistics
    "statistics_text": (
        "Two tests side by side. Published: one-sided Mann–Whitney U, asymptotic with continuity correction, Bonferroni over the "
        "pairs; it treats a patient's values under several models as independent patients, although the same patients stand in every "
        "group. Within patients: per patient the win probability, the share of pairs of predictors, one of each family, in which the "
        "first family's is better (ties count half, an infinite distance is the worst); its mean over patients is tested against ½ by "
        "randomisation: {draws} times, the family labels are permuted among each patient's own predictors. One-sided (the first family "
        "is better, Holm over the pairs) and two-sided. Beside it the size: the mean over patients of the difference of the family means, "
        "with its 95 % BCa bootstrap interval over patients (none below {fewest} patients).",
        "Deux tests côte à côte. Publié : U de Mann–Whitney unilatéral, asymptotique avec correction de continuité, Bonferroni sur les "
        "paires ; il prend les valeurs d'un patient sous plusieurs modèles pour des patients indépendants, alors que les mêmes patients sont "
        "dans chaque groupe. Par patient : la probabilité de victoire, part des paires de prédicteurs, un de chaque famille, où celui de "
        "la première famille est meilleur (égalités comptées à moitié, une distance infinie est la pire) ; sa moyenne sur les patients est "
        "confrontée à ½ par randomisation : {draws} fois, les étiquettes de famille sont permutées entre les prédicteurs d'un même patient. "
        "Unilatéral (la première famille est meilleure, Holm sur les paires) et bilatéral. À côté, la taille : moyenne sur les patients de la "
        "différence des moyennes de famille, avec son intervalle bootstrap BCa à 95 % sur les patients (aucun en dessous de {fewest} patients).",
    ),
    "primary_text": (
        "One primary metric answers each question ({primary}); every other metric is exploratory. Significant means a corrected p "
        "below {alpha} of a primary metric, from {fewest} patients on; metrics are not corrected for each other.",
        "Une métrique principale répond à chaque question ({primary}) ; toute autre métrique est exploratoire. Significatif : p corrigé "
        "sous {alpha} d'une métrique principale, à partir de {fewest} patients ; les métriques ne sont pas corrigées entre elles.",
    ),
    "primary_one": ("{question}: {metric}", "{question} : {metric}"),
    "published_test": ("Published test (Mann–Whitney)", "Test publié (Mann–Whitney)"),
    "within_test": ("Test within patients (randomisation)", "Test par patient (randomisation)"),
    "significant_note": (
        "Bold: corrected p below {alpha} of a primary metric, from {fewest} patients on. NaN: undefined values left out of each side.",
        "En gras : p corrigé sous {alpha} d'une métrique principale, à partir de {fewest} patients. NaN : valeurs indéfinies écartées de "
        "chaque côté.",
    ),
    "margin_title": ("Without hurting accuracy", "Sans nuire à l'exactitude"),
    "margin_text": (
        "Not to be significantly worse does not show that nothing is lost; this is a claim of non-inferiority. The first family is not "
        "inferior when the one-sided {level} BCa bound of the mean difference in {metric} stays within a margin of {margin}. {why} Each "
        "pair stands for itself; below {fewest} patients there is no bound.",
        "Ne pas être significativement moins bon ne montre pas que rien n'est perdu : c'est une affirmation de non-infériorité. La première "
        "famille n'est pas inférieure quand la borne BCa unilatérale à {level} de la différence moyenne de {metric} reste dans une marge de "
        "{margin}. {why} Chaque paire vaut pour elle-même ; en dessous de {fewest} patients il n'y a pas de borne.",
    ),
    "margin_why": (
        "One point of Dice is what lies between neighbouring teams in the challenge's table (median gap 0.0105); it is fixed by the "
        "configuration, not by these scores.",
        "Un point de Dice est ce qui sépare les équipes voisines dans la table du challenge (écart médian 0,0105) ; il est fixé par la "
        "configuration, non par ces scores.",
    ),
    "margin_set": ("The margin is the study's own.", "La marge est celle de l'étude."),
    "no_margin": (
        "Non-inferiority in accuracy was not tested.",
        "La non-infériorité en exactitude n'a pas été testée.",
    ),
    "no_comparisons": ("No comparison of families was given.", "Aucune comparaison de familles n'a été fournie."),
    "association_title": ("Dice and entropy", "Dice et entropie"),
    "association_caption": (
        "Each patient counts once, with its means over predictors: n patients; NaN: pairs of values left out of these means. R² of the "
        "least-squares line of Dice on entropy; mutual information by nearest neighbours. No p below {fewest} patients.",
        "Chaque patient compte une fois, par ses moyennes sur les prédicteurs : n patients ; NaN : paires de valeurs écartées de ces moyennes. "
        "R² de la droite des moindres carrés du Dice sur l'entropie ; information mutuelle par plus proches voisins. Pas de p en dessous de {fewest} patients.",
    ),
    # Comparison
    "leaderboard_title": ("Among the challenge's teams", "Parmi les équipes du challenge"),
    "leaderboard_text": (
        "Each family's rank is one plus the number of teams strictly better; teams keep their own ranks. Overall: the mean of the ranks over "
        "the metrics that may be compared; those marked † may not.",
        "Le rang d'une famille est un plus le nombre d'équipes strictement meilleures ; les équipes gardent leur rang. Global : la moyenne des "
        "rangs sur les métriques comparables ; celles marquées † ne le sont pas.",
    ),
    "comparability_title": ("What may be compared", "Ce qui est comparable"),
    "other_cohort": (
        "This run scored {n} patients; the challenge's table rests on 65. Ranks mean something only when these are the same patients.",
        "Cette exécution a évalué {n} patients ; la table du challenge repose sur 65. Les rangs n'ont de sens que pour les mêmes patients.",
    ),
    "synthetic_cohort": (
        "The patients are synthetic: nothing here may be compared with the challenge, and there is no overall rank.",
        "Les patients sont synthétiques : rien ici n'est comparable au challenge, et il n'y a pas de rang global.",
    ),
    "left_out_metric": ("{metric} is not ranked: {why}.", "{metric} n'est pas classé : {why}."),
    "no_leaderboard": ("No leaderboard was given.", "Aucun classement n'a été fourni."),
    "published_title": ("This run and the published study", "Cette exécution et l'étude publiée"),
    "published_caption": (
        "Mean per family. Same name is not always same definition: see the last column.",
        "Moyenne par famille. Même nom ne veut pas toujours dire même définition : voir la dernière colonne.",
    ),
    "published_statistics": ("Tests on the published table", "Tests sur la table publiée"),
    "published_unusable": (
        "{n} things in the published table could not be used. By reason:",
        "{n} éléments de la table publiée n'ont pu être utilisés. Par motif :",
    ),
    "no_published": (
        "No published table of the study was given, so this run is not set beside it patient by patient.",
        "Aucune table publiée de l'étude n'a été fournie ; cette exécution n'y est pas confrontée patient par patient.",
    ),
    # Maps
    "contours_title": ("Annotators, {patient}", "Annotateurs, {patient}"),
    "contours_caption": (
        "Slice z = {z}: each annotator's contours on the CT (window {low} to {high} HU); yellow: voxels on which the annotators "
        "disagree ({share} of the voxels any of them labelled). The patient's left is on the right.",
        "Coupe z = {z} : contours de chaque annotateur sur le scanner (fenêtre {low} à {high} UH) ; en jaune : voxels sur lesquels "
        "les annotateurs divergent ({share} des voxels étiquetés par l'un d'eux). La gauche du patient est à droite.",
    ),
    "dissensus": ("dissensus", "dissensus"),
    "uncertainty_title": ("Uncertainty, {patient}", "Incertitude, {patient}"),
    "uncertainty_caption": (
        "Slice z = {z}, {predictor}: segmentation on the CT, predictive entropy (all uncertainty) and mutual information (its "
        "epistemic part), nats.",
        "Coupe z = {z}, {predictor} : segmentation sur le scanner, entropie prédictive (toute l'incertitude) et information mutuelle "
        "(sa part épistémique), en nats.",
    ),
    "no_maps": (
        "No slices were given, so no map is drawn.",
        "Aucune coupe n'a été fournie ; aucune carte n'est tracée.",
    ),
    "view_title": ("Organs, {patient}", "Organes, {patient}"),
    "view_caption": (
        "From {source}: surfaces of the organs, millimetres; simplified for display.",
        "D'après {source} : surfaces des organes, en millimètres ; simplifiées pour l'affichage.",
    ),
    "segmentation": ("segmentation", "segmentation"),
    # Cost
    "cost_text": (
        "What was used, as recorded by each materialisation, beside the study's own figures where known.",
        "Ce qui a été utilisé, enregistré à chaque matérialisation, à côté des chiffres de l'étude quand ils sont connus.",
    ),
    "no_cost": ("No cost was recorded.", "Aucun coût n'a été enregistré."),
    # Metrics and reproducibility
    "metrics_text": ("What each number means.", "Ce que veut dire chaque nombre."),
    "no_metrics": ("No table of metrics was given.", "Aucune table de métriques n'a été fournie."),
    "reproducibility_text": (
        "Made from commit {commit} on {date}; study fingerprint {fingerprint}.",
        "Produit à partir du commit {commit} le {date} ; empreinte de l'étude {fingerprint}.",
    ),
    "packages": ("Package versions", "Versions des paquets"),
    "data_versions": ("Data versions of the inputs", "Versions des données d'entrée"),
    "no_packages": ("No package versions were recorded.", "Aucune version de paquet n'a été enregistrée."),
    "no_data_versions": ("No data versions were recorded.", "Aucune version de données n'a été enregistrée."),
    "unknown": ("unknown", "inconnu"),
    # State
    "state_text": (
        "What was made of each step, and what was out of date or missing. What is missing of the scores is not in this report; "
        "what is out of date is in it as it was.",
        "Ce qui était fait de chaque étape, et ce qui était périmé ou manquant. Les scores qui manquent ne sont pas dans ce rapport ; "
        "ce qui est périmé y est tel qu'il était.",
    ),
    "fresh_text": ("Nothing behind this report was out of date.", "Rien de ce qui fonde ce rapport n'était périmé."),
    "no_state": ("The state of the study was not recorded.", "L'état de l'étude n'a pas été enregistré."),
    "averaged_text": (
        "What the ensembles are the mean of, as their volumes say.",
        "Ce dont les ensembles de modèles sont la moyenne, selon leurs volumes.",
    ),
    # Axes and legends
    "family": ("family", "famille"),
    "general": ("general ensemble", "ensemble général"),
    "annotator": ("annotator ensembles", "ensembles par annotateur"),
    "individual": ("individual models", "modèles individuels"),
    "all": ("all", "toutes"),
    "organ": ("organ", "organe"),
    "annotator_n": ("annotator {name}", "annotateur {name}"),
    "confidence_axis": ("confidence (probability)", "confiance (probabilité)"),
    "accuracy_axis": ("accuracy (share of voxels)", "exactitude (part des voxels)"),
    "share_axis": ("voxels (share)", "voxels (part)"),
    "accuracy": ("accuracy", "exactitude"),
    "gap": ("calibration gap", "écart de calibration"),
    "perfect": ("perfect calibration", "calibration parfaite"),
    "pooled_ece": ("pooled ECE", "ECE réuni"),
    "coverage_axis": ("coverage (share of voxels kept)", "couverture (part de voxels conservés)"),
    "risk_axis": ("risk (share wrong)", "risque (part de voxels erronés)"),
    "no_unit": ("no unit", "sans unité"),
    "epoch": ("epoch", "époque"),
    "loss_axis": ("training loss (no unit)", "perte d'entraînement (sans unité)"),
    "dice_axis": ("EMA pseudo-Dice (no unit)", "pseudo-Dice EMA (sans unité)"),
    "curves_title": ("Training curves", "Courbes d'entraînement"),
    "curves_caption": (
        "Training loss and moving average of the pseudo-Dice, one line per model.",
        "Perte d'entraînement et moyenne mobile du pseudo-Dice, une ligne par modèle.",
    ),
    "versus": ("{first}\u00a0vs\u00a0{second}", "{first}\u00a0/\u00a0{second}"),
    "short_general": ("general", "général"),
    "short_annotator": ("annotator", "annotateur"),
    "short_individual": ("individual", "individuel"),
    "figure_n": ("Figure {n}. {title}.", "Figure {n}. {title}."),
    "other_metrics": ("other", "autres"),
    "generated": ("Generated {date}", "Produit le {date}"),
    "left_right": ("left (mm)", "gauche (mm)"),
    "posterior": ("posterior (mm)", "arrière (mm)"),
    "superior": ("superior (mm)", "haut (mm)"),
    "x_pixels": ("to the patient's left (mm)", "vers la gauche du patient (mm)"),
    "y_pixels": ("to posterior (mm)", "vers l'arrière (mm)"),
}

_COLUMNS: Mapping[str, tuple[str, str]] = {
    "metric": ("metric", "métrique"),
    "pair": ("first vs second", "premier / second"),
    "n_first": ("n first", "n premier"),
    "n_second": ("n second", "n second"),
    "nan_first": ("NaN first", "NaN premier"),
    "nan_second": ("NaN second", "NaN second"),
    "U": ("U", "U"),
    "p": ("p", "p"),
    "p_bonferroni": ("p Bonferroni", "p Bonferroni"),
    "n_pairs": ("patients", "patients"),
    "unpaired_patients": ("unpaired", "non appariés"),
    "question": ("question", "question"),
    "win_probability": ("win probability", "probabilité de victoire"),
    "p_randomisation": ("p", "p"),
    "p_randomisation_holm": ("p Holm", "p Holm"),
    "p_randomisation_two_sided": ("p two-sided", "p bilatéral"),
    "mean_difference": ("mean difference", "différence moyenne"),
    "bound": ("one-sided bound", "borne unilatérale"),
    "margin": ("margin", "marge"),
    "not_inferior": ("not inferior", "non inférieure"),
    "interval": ("95 % interval", "intervalle à 95 %"),
    "note": ("note", "note"),
    "predictor": ("predictor", "prédicteur"),
    "family": ("family", "famille"),
    "patient": ("patient", "patient"),
    "set": ("set", "jeu"),
    "group": ("group", "groupe"),
    "reason": ("reason", "motif"),
    "values": ("values", "valeurs"),
    "patients": ("patients", "patients"),
    "entry": ("entry", "participant"),
    "kind": ("kind", "type"),
    "overall": ("overall (mean rank)", "global (rang moyen)"),
    "definition": ("definition", "définition"),
    "region": ("region", "région"),
    "n_patients": ("patients", "patients"),
    "n_nan": ("NaN", "NaN"),
    "comparable": ("comparable", "comparable"),
    "comparability": ("why", "raison"),
    "status": ("status", "statut"),
    "slices": ("slices", "coupes"),
    "metric_family": ("what it judges", "ce qu'elle juge"),
    "per": ("per", "par"),
    "when_empty": ("when empty", "si vide"),
    "oracle": ("compared with", "comparé à"),
    "organ": ("organ", "organe"),
    "n": ("n", "n"),
    "mean": ("mean", "moyenne"),
    "sd": ("sd", "écart-type"),
    "median": ("median", "médiane"),
    "quartiles": ("median [quartiles]", "médiane [quartiles]"),
    "mean_sd": ("mean ± sd", "moyenne ± écart-type"),
    "pearson": ("Pearson r", "r de Pearson"),
    "p_pearson": ("p", "p"),
    "spearman": ("Spearman ρ", "ρ de Spearman"),
    "p_spearman": ("p", "p"),
    "mutual_information": ("mutual information (nats)", "information mutuelle (nats)"),
    "r2": ("R²", "R²"),
    "this_run": ("this run", "cette exécution"),
    "published": ("published", "publié"),
    "difference_note": ("the study computed", "l'étude calculait"),
    "package": ("package", "paquet"),
    "version": ("version", "version"),
    "against": ("against", "contre"),
    "n_in": ("n inside", "n dedans"),
    "n_out": ("n outside", "n dehors"),
    "aurc": ("AURC", "AURC"),
    "eaurc": ("E-AURC", "E-AURC"),
    "augrc": ("AUGRC", "AUGRC"),
    "auroc": ("AUROC", "AUROC"),
    "artefact": ("artefact", "artefact"),
    "stage": ("step", "étape"),
    "step": ("step", "étape"),
    "count": ("count", "nombre"),
    "hours": ("hours", "heures"),
    "hours_each": ("hours each", "heures par unité"),
    "gb_down": ("GB down", "Go reçus"),
    "gb_up": ("GB up", "Go envoyés"),
    "gb_stored": ("GB stored", "Go stockés"),
    "peak_memory_gib": ("peak memory (GiB)", "mémoire maximale (Gio)"),
    "euros": ("€", "€"),
    "study_count": ("count, study", "nombre, étude"),
    "study_hours": ("hours, study", "heures, étude"),
    "study_gb_down": ("GB down, study", "Go reçus, étude"),
    "study_gb_up": ("GB up, study", "Go envoyés, étude"),
    "label": ("name", "nom"),
    "direction": ("better", "sens"),
    "unit": ("unit", "unité"),
    "range": ("range", "étendue"),
    "reference": ("reference", "référence"),
    "asset": ("step", "étape"),
    "partitions": ("of the study", "de l'étude"),
    "made": ("made", "faits"),
    "stale": ("out of date", "périmés"),
    "missing": ("missing", "manquants"),
    "elsewhere": ("made elsewhere", "faits ailleurs"),
    "why": ("why", "pourquoi"),
    "members": ("members", "membres"),
    "models": ("models", "modèles"),
    "shape": ("shape (Z, Y, X)", "forme (Z, Y, X)"),
    "spacing_mm": ("spacing (mm)", "espacement (mm)"),
}

_REASONS: Mapping[str, str] = {
    "has a new code version": "le code ou la configuration a changé",
    "has a new data version": "a changé",
    "has a new dependency on": "dépend désormais de",
    "removed dependency on": "ne dépend plus de",
    "made elsewhere, left alone:": "fait ailleurs, laissé tel quel :",
    "reasons more": "autres raisons",
}
"""Parts of the reasons that the lineage gives, in English there, and their French."""

_QUESTIONS: Mapping[str, tuple[str, str]] = {
    "exploratory": ("exploratory", "exploratoire"),
    "accuracy": ("accuracy", "exactitude"),
    "calibration": ("calibration", "calibration"),
    "aleatoric": ("aleatoric uncertainty", "incertitude aléatoire"),
    "failure detection": ("failure detection", "détection d'erreurs"),
}

_ORGANS: Mapping[str, str] = {
    "background": "fond",
    "pancreas": "pancréas",
    "kidney": "rein",
    "kidneys": "reins",
    "kidney-left": "rein gauche",
    "kidney-right": "rein droit",
    "liver": "foie",
    "spleen": "rate",
    "stomach": "estomac",
    "gallbladder": "vésicule biliaire",
    "aorta": "aorte",
    "bladder": "vessie",
    "prostate": "prostate",
    "heart": "cœur",
    "lung": "poumon",
}

_METRICS: Mapping[str, tuple[str, str]] = {
    "dice": ("Dice", "Dice"),
    "dice_published": ("Dice (challenge's code)", "Dice (code du challenge)"),
    "dice_annotator": ("Dice per annotator", "Dice par annotateur"),
    "hausdorff": ("Hausdorff distance", "distance de Hausdorff"),
    "hd95": ("Hausdorff distance, 95th percentile", "distance de Hausdorff, 95e centile"),
    "assd": ("Average symmetric surface distance", "distance surfacique symétrique moyenne"),
    "nsd": ("Normalised surface Dice", "Dice surfacique normalisé"),
    "crps": ("CRPS of the volume", "CRPS du volume"),
    "crps_published": ("CRPS (challenge's cut)", "CRPS (coupure du challenge)"),
    "ece": ("Expected calibration error", "erreur de calibration attendue (ECE)"),
    "ece_published": (
        "Expected calibration error (challenge's float32)",
        "erreur de calibration attendue (float32 du challenge)",
    ),
    "ace": ("Average calibration error", "erreur de calibration moyenne (ACE)"),
    "adaptive_ece": ("Adaptive calibration error", "erreur de calibration adaptative"),
    "classwise_ece": ("Classwise calibration error", "erreur de calibration par classe"),
    "ece_mean_response": ("ECE against the mean response", "ECE contre la réponse moyenne"),
    "brier": ("Brier score", "score de Brier"),
    "nll": ("Negative log-likelihood", "log-vraisemblance négative"),
    "confidence": ("Confidence", "confiance"),
    "ncc": ("Correlation of disagreement and uncertainty", "corrélation désaccord–incertitude"),
    "ncc_annotators": ("Correlation between annotators", "corrélation entre annotateurs"),
    "agreement": ("Dice between annotators", "Dice entre annotateurs"),
    "agreement_kappa": ("Fleiss' κ of the annotators", "κ de Fleiss des annotateurs"),
    "label_entropy": ("Entropy of the label histogram", "entropie de l'histogramme des étiquettes"),
    "label_entropy_annotations": (
        "Entropy of the annotations' label histogram",
        "entropie de l'histogramme des étiquettes annotées",
    ),
    "ged": ("Generalised energy distance", "distance d'énergie généralisée"),
    "auroc": ("AUROC", "AUROC"),
    "auroc_error": ("AUROC of errors", "AUROC des erreurs"),
    "aurc": ("AURC", "AURC"),
    "eaurc": ("E-AURC", "E-AURC"),
    "augrc": ("AUGRC", "AUGRC"),
    "predictive_entropy": ("Predictive entropy", "entropie prédictive"),
    "expected_entropy": ("Expected entropy", "entropie attendue"),
    "mutual_information": ("Mutual information", "information mutuelle"),
    **{
        f"{name}_{suffix}": (f"{english}, {where}", f"{french}, {ou}")
        for name, english, french in (
            ("predictive_entropy", "Predictive entropy", "entropie prédictive"),
            ("expected_entropy", "Expected entropy", "entropie attendue"),
            ("mutual_information", "Mutual information", "information mutuelle"),
        )
        for suffix, where, ou in (
            ("patch", "largest patch", "plus grand bloc"),
            ("above", "above the threshold", "au-dessus du seuil"),
        )
    },
    "member_dice": ("Dice between members", "Dice entre membres"),
}


class Words:
    """One language's words: `words("key", name=value)`, `words.metric("ece")`, `words.column("p_bonferroni")`.

    Args:
        language: `en` or `fr`.

    Raises:
        ReportError: another language.
    """

    def __init__(self, language: str):
        if language not in ("en", "fr"):
            raise ReportError(
                "writing the report", repr(language), "it is not a language of the report", "Use en or fr."
            )
        self.language: Language = language  # type: ignore[assignment]
        self._side = ("en", "fr").index(language)
        self.decimal = (".", ",")[self._side]

    def __call__(self, key: str, **values: object) -> str:
        text = _TEXT[key][self._side]
        return text.format(**values) if values else text

    def metric(self, metric: str) -> str:
        """The metric's name in this language, starting in upper case; its own name if it has none here."""
        name = _METRICS[metric][self._side] if metric in _METRICS else metric.replace("_", " ")
        return name[:1].upper() + name[1:]

    def column(self, column: str) -> str:
        return _COLUMNS[column][self._side] if column in _COLUMNS else column.replace("_", " ")

    def reason(self, reason: str) -> str:
        """Why something is out of date, as the lineage says it."""
        for english, french in _REASONS.items() if self._side else ():
            reason = reason.replace(english, french)
        return reason

    def organ(self, organ: str) -> str:
        """An organ of the study's, by its name in this language where it is a common one."""
        return _ORGANS.get(organ, organ) if self.language == "fr" else organ

    def told(self, text: str) -> str:
        """A note, reason or definition that another package wrote, in this language where it is known."""
        return in_french(text) if self.language == "fr" else text

    def question(self, question: str) -> str:
        """A question of the study's primary metrics, or `exploratory`; its own words if it has none here."""
        return _QUESTIONS[question][self._side] if question in _QUESTIONS else question

    def family(self, family: str) -> str:
        return _TEXT[family][self._side] if family in ("general", "annotator", "individual", "all") else family


def keys() -> Mapping[str, tuple[str, str]]:
    """Everything that is said, in both languages (for the test that both say it)."""
    return {
        **_TEXT,
        **{f"column:{k}": v for k, v in _COLUMNS.items()},
        **{f"metric:{k}": v for k, v in _METRICS.items()},
        **{f"question:{k}": v for k, v in _QUESTIONS.items()},
    }

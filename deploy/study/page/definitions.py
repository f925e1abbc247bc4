"""What each statistic on the page is, in two sentences each."""

DEFINITIONS = {
    "FID, KID, precision, recall, Inception score": (
        "Measures of sampled against real images in the feature space named above; FID and KID are "
        "distances (zero for equal distributions), the other three grow with agreement or "
        "confidence. FID depends on the number of samples and on the features, so it compares only "
        "within this page."
    ),
    "Mean and 95 % interval": (
        "Mean over seeds and Student's t-interval with n - 1 degrees of freedom. It covers "
        "training and sampling noise from one shared start, not another teacher, base student "
        "or data set."
    ),
    "Fixed and best guidance": (
        "The fixed guidance is the same for all methods. The best guidance of a method is chosen "
        "for each seed by the mean FID of its other seeds, so that the FID shown had no part in "
        "the choice; with one seed it is the plain minimum and optimistic."
    ),
    "Difference": (
        "FID of a method minus FID of the other on the same seed, averaged over the seeds that "
        "both have. A negative difference is a lower FID."
    ),
    "95 % alone and joint": (
        "The first is the paired t-interval of one comparison taken by itself. The joint interval "
        "is Bonferroni's (level 1 - 0.05/m for m comparisons): with 95 % all joint intervals of "
        "all methods and baselines at the fixed guidance cover at once, and so do those at the "
        "best guidance, but not both sets together; verdicts use it."
    ),
    "Half-width": (
        "Half of the joint interval: the smallest difference that these seeds could have told from "
        "none. It uses the spread observed, so it is itself uncertain with few seeds."
    ),
    "p (t) and p (Holm)": (
        "Two-sided p of the paired t-test, and the same adjusted by Holm over all methods and "
        "baselines at that guidance. Ablation, and teacher against base student, are adjusted each "
        "for themselves."
    ),
    "p (sign flip)": (
        "The share of all 2^n ways to flip the signs of the n differences whose mean is at least "
        "as far from zero. It needs no normal distribution, but cannot fall below 2^(1 - n), "
        "given in brackets."
    ),
    "Verdict": (
        "A direction is named only where the joint interval excludes zero. A direction at the "
        "fixed guidance that is not there at the best guidance of each may be a shift along "
        "the guidance axis."
    ),
    "Seconds, images, steps": (
        "Training alone, without evaluation; images are student images trained on. Curves align "
        "seeds by evaluation, and bands run from the lowest to the highest seed."
    ),
    "Gate survival": (
        "Mean share of tokens that the gate of a method let through to its loss. Methods without a "
        "gate have none."
    ),
}

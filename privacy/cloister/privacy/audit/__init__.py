"""Privacy-budget audits as pure functions: from the scores of planted canaries to a bound on ε from below, and a verdict.

==============  ==========================================================================================
module          what it is
==============  ==========================================================================================
`coins`         which canaries are planted: drawn, sealed before training, opened after it
`scores`        what an adversary measured of each canary, and the guesses that follow from it
`guessing`      bounds from guesses that hold whatever ties the canaries together
`gaussian`      bounds for a mechanism whose canaries carry independent Gaussian noise
`rates`         bounds from true and false alarms
`estimators`    the five estimators, each with what it assumes
`canaries`      the canaries themselves: records whose gradient is a number in a direction of its own
`in_run`        what an audit of a run claims and may assume, from the run's own federation file
`claims`        the mechanism that a run claims to be, and scores as it would give them
`power`         what an audit could find, computed before anything is measured
`judging`       the verdict
`membership`    who was trained on, told from a model: the loss, LiRA, RMIA
`leakage`       records rebuilt from an update
==============  ==========================================================================================

A bound from below says what an attacker was shown to learn. It never proves that not more can be learnt: where an audit finds nothing, the
guarantee rests on its proof, and the audit says what it could have found.
"""

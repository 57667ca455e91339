"""Privacy-budget audits as pure functions: from the scores of planted canaries to a bound on ε from below, and a verdict.

==============  ===================================================================================
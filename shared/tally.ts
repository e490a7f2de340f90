/** Counts by a name out of a bounded set; past `most` names the rest is counted as `other`. */
export class Tally {
  readonly #most: number
  readonly #counts = new Map<string, number>()

  constructor(most = 100) {
    this.#most = most
  }

  add(name: string): void {
    const known = this.#counts.has(name) || this.#counts.size < this.#most ? name : 'other'
    this.#counts.set(known, (this.#counts.get(known) ?? 0) + 1)
  }

  /** As readings of a metric whose one label is `label`. */
  readings(label: string): { labels: Record<string, string>; value: number }[] {
    return [...this.#counts].map(([name, value]) => ({ labels: { [label]: name }, value }))
  }
}

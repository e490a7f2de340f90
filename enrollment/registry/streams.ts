/**
 * Which brokers follow the change log just now. That is a fact about connections of this process, so it is kept in
 * memory and gone with it. A broker may open its new stream before the end of its old one is noticed: they are counted.
 */
export class Streams {
  readonly #open = new Map<string, number>()

  changed(broker: string, isOpen: boolean): void {
    const count = (this.#open.get(broker) ?? 0) + (isOpen ? 1 : -1)
    if (count > 0) this.#open.set(broker, count)
    else this.#open.delete(broker)
  }

  isOpen(broker: string): boolean {
    return this.#open.has(broker)
  }
}

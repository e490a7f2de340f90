import type { BrokerView } from '#shared/api'
import type { Log } from '#shared/log'

/** Why brokers cannot follow the change stream, in their own words: of this process, like the streams themselves. */
export class BrokerFaults {
  readonly #faults = new Map<string, string>()
  readonly #log: Log

  constructor(log: Log) {
    this.#log = log
  }

  /** @param fault with which it has opened its stream; undefined when it can follow, as far as it knows */
  heard(broker: string, fault: string | undefined): void {
    if (fault === this.#faults.get(broker)) return
    if (fault === undefined) this.#faults.delete(broker)
    else {
      this.#faults.set(broker, fault)
      this.#log.error({ broker, fault }, 'a broker cannot follow the change stream')
    }
  }

  /** The same brokers, those that cannot follow with the reason. One that has caught up since can. */
  in(brokers: readonly BrokerView[]): BrokerView[] {
    return brokers.map((broker) => {
      if (broker.behind === 0) this.#faults.delete(broker.id)
      const fault = this.#faults.get(broker.id)
      return fault === undefined ? broker : { ...broker, fault }
    })
  }
}

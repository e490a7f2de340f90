import type { BrokerView } from '#shared/api'
import type { ReportBatch } from '#shared/feed'
import type { Log } from '#shared/log'

/** What is wrong with brokers, in their own words: of this process, like the streams themselves. */
export class BrokerFaults {
  /** Why they cannot follow the change stream. */
  readonly #faults = new Map<string, string>()
  /** What of their certificates and CAs they cannot use, by their last batch of reports. */
  readonly #serving = new Map<string, string>()
  /** Why they cannot forget what holds have ordered to be, by the same. */
  readonly #purging = new Map<string, string>()
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

  /** @param batch what the last one of its reports says; left out what is well */
  reported(broker: string, { faults = [], unpurged = '' }: Pick<ReportBatch, 'faults' | 'unpurged'>): void {
    const said = faults.join('; ')
    if (isNews(this.#serving, broker, said)) {
      this.#log.error({ broker, faults }, 'a broker cannot use what it was given')
    }
    if (isNews(this.#purging, broker, unpurged)) {
      this.#log.error({ broker, fault: unpurged }, 'a broker cannot forget what holds have ordered to be')
    }
  }

  /** The same brokers, those with a fault with what it is. One that has caught up since can follow. */
  in(brokers: readonly BrokerView[]): BrokerView[] {
    return brokers.map((broker) => {
      if (broker.behind === 0) this.#faults.delete(broker.id)
      const serving = this.#serving.get(broker.id)
      const faults = [
        this.#faults.get(broker.id),
        serving && `Cannot use what it was given: ${serving}`,
        this.#purging.get(broker.id),
      ]
      const fault = faults.filter((one) => one !== undefined).join('; ')
      return fault === '' ? broker : { ...broker, fault }
    })
  }
}

/** Keeps what is said of a broker, nothing for all is well. True when it is a fault, and not the one from before. */
function isNews(said: Map<string, string>, broker: string, fault: string): boolean {
  if (fault === (said.get(broker) ?? '')) return false
  if (fault !== '') said.set(broker, fault)
  else said.delete(broker)
  return fault !== ''
}

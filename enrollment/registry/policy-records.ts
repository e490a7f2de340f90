import type { DeviceRecord, Policy } from '#shared/feed'
import type { Act } from './records.ts'
import type { SecondFactorIntents } from './second-factors.ts'

/** Whom a policy is for, with what it may depend on. */
export interface PolicySubject {
  readonly device: DeviceRecord
  readonly isOnline: boolean
}

/** The part of the port for policies of single devices and services, and for what policies depend on. */
export interface PolicyIntents extends SecondFactorIntents {
  /** Its own policy, or null for that of its fleet alone. @throws MusterError not_found */
  setDevicePolicy(id: string, policy: Policy | null, act: Act): Promise<PolicySubject>
  /**
   * Sets attributes; an empty value takes one away, those that are not named stay.
   * @throws MusterError not_found, invalid_request (more than a device can have)
   */
  tagDevice(id: string, attributes: Readonly<Record<string, string>>, act: Act): Promise<PolicySubject>
  /** @throws MusterError not_found */
  policySubject(id: string): Promise<PolicySubject>
  /**
   * Devices of a fleet that may connect, or will: all of them, or every n-th, so that at most `limit` are looked at.
   * @throws MusterError not_found (the fleet)
   */
  samplePolicySubjects(
    fleet: string,
    limit: number,
  ): Promise<{ readonly total: number; readonly sample: readonly PolicySubject[] }>
}
